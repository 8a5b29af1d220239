// What all attention kernels share: who sees what, a running softmax, and the layout of partial results.
#pragma once
#include "kv.cuh"
#include "math.cuh"

namespace di {

__device__ __forceinline__ float minus_infinity() { return __int_as_float(static_cast<int>(0xff800000u)); }

// exp(x - maximum): 1 where they are equal, also where both are -inf.
__device__ __forceinline__ float exp_below(float x, float maximum) {
    return x == maximum ? 1.0f : exp_spec(x - maximum);
}

// The type that queries and probabilities are rounded to beside a cache: codes are multiplied as bf16.
__device__ __forceinline__ int operand_type(const KvPool& kv) { return is_codes(kv) ? BF16 : kv.dtype; }

// A sequence of the step, as a piece of work sees it.
struct Query {
    int first_row;  // of the sequence in the step
    int position;   // in the cache, of its first token
    int length;     // of the cache
    int group;      // query heads a KV head
    int bidirectional;

    __device__ __forceinline__ Query(const AttentionArgs& a, int sequence) {
        first_row = a.q_offset[sequence];
        length = a.kv_len[sequence];
        position = length - (a.q_offset[sequence + 1] - first_row);
        group = a.Hq / a.Hkv;
        bidirectional = a.bidirectional ? min(a.bidirectional[sequence], length) : 0;
    }
    __device__ __forceinline__ int position_of(int row) const { return position + row / group; }
    __device__ __forceinline__ int token_row(int row) const { return first_row + row / group; }
    __device__ __forceinline__ int head(int row, int kv_head) const { return kv_head * group + row % group; }

    // The cache positions [first, end) that the token at `at` sees.
    __device__ __forceinline__ int end(int at) const { return at < bidirectional ? bidirectional : at + 1; }
    __device__ __forceinline__ int first(int at, int window) const { return window ? max(at - window + 1, 0) : 0; }
};

// A score with cap and slope; -inf where position `at` is not seen.
__device__ __forceinline__ float masked_score(const AttentionArgs& a, float score, int at, int first, int end,
                                              float slope) {
    if (at < first || at >= end) return minus_infinity();
    if (a.softcap != 0.0f) score = a.softcap * tanh_spec(score / a.softcap);
    return slope != 0.0f ? score + slope * static_cast<float>(at) : score;
}

// Row `row` of a partial result: kv.head_size sums, and maximum and sum.
__device__ __forceinline__ int64_t part_row(const AttentionArgs& a, int part, int kv_head, int row) {
    return (static_cast<int64_t>(part) * a.Hkv + kv_head) * a.tile_rows + row;
}

}  // namespace di
