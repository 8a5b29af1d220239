// Edits of a row of logits before a draw: mask, banned tokens, bias, penalties, repeated n-grams; docs/sampling.md.
#pragma once
#include "sample_select.cuh"

namespace di {

__device__ __forceinline__ float minus_infinity_logit() { return __uint_as_float(0xff800000u); }

__device__ __forceinline__ bool has_history(const Sample& s) { return s.history && s.history_len > 0; }
__device__ __forceinline__ bool penalizes(const Sample& s) {
    return s.repetition_penalty != 1.0f || s.presence_penalty != 0.0f || s.frequency_penalty != 0.0f;
}
__device__ __forceinline__ bool edits(const Sample& s) {
    return s.mask || s.n_banned > 0 || s.n_bias > 0 || (has_history(s) && (penalizes(s) || s.no_repeat_ngram > 0));
}
__device__ __forceinline__ bool is_known(int token, int V) { return token >= 0 && token < V; }

__device__ inline void copy_masked(float* x, const float* logits, int V, const uint32_t* mask) {
    for (int i = threadIdx.x; i < V; i += blockDim.x)
        x[i] = !mask || mask[i / 32] >> (i % 32) & 1 ? logits[i] : minus_infinity_logit();
    __syncthreads();
}

__device__ inline void ban(float* x, int V, const int32_t* ids, int n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x)
        if (is_known(ids[i], V)) x[ids[i]] = minus_infinity_logit();
    __syncthreads();
}

// The first entry of a token adds all of its entries, in the order of the list.
__device__ inline void add_bias(float* x, int V, const int32_t* ids, const float* values, int n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        if (!is_known(ids[i], V)) continue;
        bool first = true;
        for (int j = 0; j < i && first; ++j) first = ids[j] != ids[i];
        if (!first) continue;
        float y = x[ids[i]];
        for (int j = i; j < n; ++j)
            if (ids[j] == ids[i]) y += values[j];
        x[ids[i]] = y;
    }
    __syncthreads();
}

// A token's count word: bit 0 for a place in the history, 2 for each time it was generated. Whoever takes the word
// applies the penalties and leaves 0.
__device__ inline void penalize(float* x, int V, const Sample& s, uint32_t* counts) {
    for (int i = threadIdx.x; i < s.history_len; i += blockDim.x) {
        const int token = s.history[i];
        if (!is_known(token, V)) continue;
        atomicOr(&counts[token], 1u);
        if (i >= s.prompt_len) atomicAdd(&counts[token], 2u);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < s.history_len; i += blockDim.x) {
        const int token = s.history[i];
        const uint32_t word = is_known(token, V) ? atomicExch(&counts[token], 0u) : 0u;
        if (!word) continue;
        const float generated = static_cast<float>(word >> 1);
        float y = x[token];
        y = y > 0.0f ? y / s.repetition_penalty : y * s.repetition_penalty;
        if (generated != 0.0f) {
            y = y - s.frequency_penalty * generated;
            y = y - s.presence_penalty;
        }
        x[token] = y;
    }
    __syncthreads();
}

// Forbids every token that would complete an n-gram of the history for a second time.
__device__ inline void forbid_repeats(float* x, int V, const int32_t* history, int length, int n) {
    const int32_t* end = history + length - (n - 1);
    for (int i = threadIdx.x; i <= length - n; i += blockDim.x) {
        const int next = history[i + n - 1];
        bool same = is_known(next, V);
        for (int j = 0; j < n - 1 && same; ++j) same = history[i + j] == end[j];
        if (same) x[next] = minus_infinity_logit();
    }
    __syncthreads();
}

__device__ inline void edit(float* x, const float* logits, int V, const Sample& s, uint32_t* counts) {
    copy_masked(x, logits, V, s.mask);
    if (s.n_banned > 0) ban(x, V, s.banned_ids, s.n_banned);
    if (s.n_bias > 0) add_bias(x, V, s.bias_ids, s.bias_values, s.n_bias);
    if (!has_history(s)) return;
    if (penalizes(s)) penalize(x, V, s, counts);
    if (s.no_repeat_ngram > 0) forbid_repeats(x, V, s.history, s.history_len, s.no_repeat_ngram);
}

}  // namespace di
