// The report of the raw distribution: log probabilities, ranks, the best alternatives; docs/sampling.md.
#pragma once
#include "double_math.cuh"
#include "math.cuh"
#include "sample_select.cuh"

namespace di {

constexpr int kMaxTop = 256;

struct ReportScratch {
    Key top[kMaxTop];
    int tops;
    double log_sum;
};

// ln of the sum of exp(x - max), with infinite logits of their number. Sixteen lanes sum a chunk of 256; chunks are
// added in double precision in ascending order. `work` has a float a chunk.
__device__ inline double log_sum(const float* x, int n, float max, bool infinite, float* work, SelectScratch& s,
                                 ReportScratch& r) {
    if (infinite) {
        Sum infinities = 0;
        for (int i = threadIdx.x; i < n; i += blockDim.x) infinities += ordered(x[i]) == kOrderedInfinity;
        return log_double(static_cast<double>(block_reduce(infinities, s.warp, Add())));
    }
    const int lane = threadIdx.x % 16, chunks = (n + 255) / 256, step = blockDim.x / 16;
    for (int first = 0; first < chunks; first += step) {
        const int chunk = first + threadIdx.x / 16, end = min((chunk + 1) * 256, n);
        float sum = 0;
        for (int i = chunk * 256 + lane; i < end; i += 16) sum = sum + exp_spec(x[i] - max);
        for (int by = 8; by; by /= 2) sum = sum + __shfl_down_sync(kWarp, sum, by, 16);
        if (lane == 0 && chunk < chunks) work[chunk] = sum;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        double total = 0;
        for (int c = 0; c < chunks; ++c) total += static_cast<double>(work[c]);
        r.log_sum = log_double(total);
    }
    __syncthreads();
    return r.log_sum;
}

__device__ __forceinline__ float logprob_of(float x, float max, double log_sum) {
    const bool infinite = ordered(max) == kOrderedInfinity;
    if (ordered(x) == kOrderedMinusInfinity || (infinite && ordered(x) != kOrderedInfinity))
        return __uint_as_float(0xff800000u);
    const double below = infinite ? 0.0 : static_cast<double>(x) - static_cast<double>(max);
    return static_cast<float>(below - log_sum);
}

__device__ inline int rank_of(const float* x, int n, int token, SelectScratch& s) {
    const Key key = key_of(x[token], token);
    Sum before = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) before += key_of(x[i], i) >= key;
    return static_cast<int>(block_reduce(before, s.warp, Add()));
}

// The `wanted` first tokens, best first.
__device__ inline void report_top(const float* x, int n, int wanted, float max, double log_sum, int32_t* ids,
                                  float* logprobs, SelectScratch& s, ReportScratch& r) {
    if (wanted <= 0) return;
    const Key last = select(x, n, static_cast<Sum>(wanted), s, [](int) -> Sum { return 1; });
    if (threadIdx.x == 0) r.tops = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += blockDim.x)
        if (key_of(x[i], i) >= last) r.top[atomicAdd(&r.tops, 1)] = key_of(x[i], i);
    __syncthreads();
    for (int i = threadIdx.x; i < wanted; i += blockDim.x) {
        int place = 0;
        for (int j = 0; j < wanted; ++j) place += r.top[j] > r.top[i];
        const int id = id_of(r.top[i]);
        ids[place] = id;
        logprobs[place] = logprob_of(x[id], max, log_sum);
    }
}

}  // namespace di
