// Selection from a row by its order (logit descending, id ascending) and walks in the order of ids. What is summed are
// integers, counts or masses, so neither the number of threads nor their order shows in a result.
#pragma once
#include "reduce.cuh"

namespace di {

using Sum = unsigned long long;
using Key = unsigned long long;  // larger for what comes first

constexpr int kDigitBits = 11, kDigits = 1 << kDigitBits;

struct SelectScratch {
    Sum digit[kDigits];
    Sum warp[kMaxWarps];
    Sum found[2];
};

// Integers in the order of the floats; -0 and subnormal numbers equal +0, a NaN comes before everything.
__device__ __forceinline__ uint32_t ordered(float x) {
    uint32_t u = __float_as_uint(x);
    if ((u & 0x7f800000u) == 0) u = 0;
    if ((u & 0x7fffffffu) > 0x7f800000u) return 0xffffffffu;
    return u & 0x80000000u ? ~u : u | 0x80000000u;
}
constexpr uint32_t kOrderedNan = 0xffffffffu, kOrderedInfinity = 0xff800000u, kOrderedMinusInfinity = 0x007fffffu;

__device__ __forceinline__ Key key_of(float x, int id) {
    return static_cast<Key>(ordered(x)) << 32 | ~static_cast<uint32_t>(id);
}
__device__ __forceinline__ int id_of(Key key) { return static_cast<int>(~static_cast<uint32_t>(key)); }

// The key of the row's first element; kOrderedNan is its upper half where the row has a NaN.
__device__ inline Key first_key(const float* x, int n, SelectScratch& s) {
    Key best = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) best = Max()(best, key_of(x[i], i));
    return block_reduce(best, s.warp, Max());
}

// The lowest id at which the running sum of measure(id) over [0, n) exceeds `goal`, which is below the total.
template <class Measure>
__device__ int walk(int n, Sum goal, SelectScratch& s, Measure measure) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    int low = 0, high = n;
    while (high - low > 32) {
        const int share = ((high - low + warps - 1) / warps + 31) / 32 * 32;
        const int begin = low + warp * share, end = min(begin + share, high);
        Sum sum = 0;
        for (int i = begin + lane; i < end; i += 32) sum += measure(i);
        for (int bit = 16; bit; bit >>= 1) sum += __shfl_xor_sync(kWarp, sum, bit);
        if (lane == 0) s.warp[warp] = sum;
        __syncthreads();
        int w = 0;
        while (w < warps - 1 && goal >= s.warp[w]) goal -= s.warp[w++];
        low = low + w * share;
        high = min(low + share, high);
        __syncthreads();
    }
    for (; low < high - 1; ++low) {
        const Sum m = measure(low);
        if (goal < m) break;
        goal -= m;
    }
    return low;
}

// The key of the element with which the sum of measure(id), in order, reaches `need`, from 1 to the total. Equal logits
// have equal measures, or are measured by their first ids alone.
template <class Measure>
__device__ Key select(const float* x, int n, Sum need, SelectScratch& s, Measure measure) {
    uint32_t prefix = 0, known = 0;
    for (int shift = 32 - kDigitBits; known != 0xffffffffu; shift = shift > kDigitBits ? shift - kDigitBits : 0) {
        for (int d = threadIdx.x; d < kDigits; d += blockDim.x) s.digit[d] = 0;
        __syncthreads();
        for (int i = threadIdx.x; i < n; i += blockDim.x) {
            const uint32_t u = ordered(x[i]);
            if ((u & known) != prefix) continue;
            const Sum m = measure(i);
            if (m) atomicAdd(&s.digit[(u & ~known) >> shift], m);
        }
        __syncthreads();
        if (threadIdx.x < 32) {  // the digit, from the largest down, with which the sum reaches what is needed
            constexpr int kShare = kDigits / 32;
            const int top = kDigits - 1 - static_cast<int>(threadIdx.x) * kShare;
            Sum mine = 0;
            for (int d = top; d > top - kShare; --d) mine += s.digit[d];
            Sum above = mine;  // of the lanes up to this one
            for (int by = 1; by < 32; by *= 2) {
                const Sum other = __shfl_up_sync(kWarp, above, by);
                if (static_cast<int>(threadIdx.x) >= by) above += other;
            }
            above -= mine;
            if (above < need && above + mine >= need) {
                int d = top;
                for (; above + s.digit[d] < need; --d) above += s.digit[d];
                s.found[0] = d, s.found[1] = above;
            }
        }
        __syncthreads();
        prefix |= static_cast<uint32_t>(s.found[0]) << shift;
        need -= s.found[1];
        known = shift ? ~0u << shift : ~0u;
    }
    const int last = walk(n, need - 1, s, [&](int i) -> Sum { return ordered(x[i]) == prefix ? measure(i) : 0; });
    return static_cast<Key>(prefix) << 32 | ~static_cast<uint32_t>(last);
}

}  // namespace di
