// Paged attention with fused multiply-adds, for every type on every chip: prefill and decode alike. A block has 16
// query rows, eight threads a row; keys and values pass through shared memory, 32 tokens at a time.
//
// Splits of kAttentionSplit positions are summed on their own and merged in ascending order, so that a row's bits do
// not depend on how the work was shared out.
#include "attention.cuh"

namespace di {
namespace {

constexpr int kRows = 16, kTokens = 32, kLanes = 8;

struct Tile {
    float* q;       // [kRows][head + 1]
    float* kv;      // [kTokens][head + 1] keys, then values
    float* p;       // [kRows][kTokens + 1]
    float* scales;  // [2][kTokens] of codes
    int stride;
};

__device__ __forceinline__ Tile tile_of(float* shared, int head) {
    const int stride = head + 1;
    return {shared, shared + kRows * stride, shared + (kRows + kTokens) * stride,
            shared + (kRows + kTokens) * stride + kRows * (kTokens + 1), stride};
}

// One row's softmax so far; column kLanes · j + lane of the sum is o[j].
template <int kWide>
struct Running {
    float m, l, o[kWide];

    __device__ __forceinline__ void clear(float maximum, float sum) {
        m = maximum, l = sum;
#pragma unroll
        for (int j = 0; j < kWide; ++j) o[j] = 0;
    }
    __device__ __forceinline__ void merge(const Running& part) {
        const float top = fmaxf(m, part.m), mine = exp_below(m, top), theirs = exp_below(part.m, top);
        m = top;
        l = fmaf(l, mine, part.l * theirs);
#pragma unroll
        for (int j = 0; j < kWide; ++j) o[j] = fmaf(o[j], mine, part.o[j] * theirs);
    }
};

__device__ __forceinline__ Four load_codes(const uint8_t* row, int c, int dtype, float zero) {
    Four r;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int code = dtype == U8 ? row[c + i] : row[(c + i) / 2] >> (4 * (i & 1)) & 15;
        r.x[i] = static_cast<float>(code) - zero;
    }
    return r;
}

// Keys or values of the positions [start, end), zeros beyond; of codes the integers, and their scales.
__device__ __forceinline__ void load_tokens(const AttentionArgs& a, const Tile& s, int which, int sequence, int kv_head,
                                            int start, int end) {
    const int quads = a.kv.head_size / 4;
    for (int i = threadIdx.x; i < kTokens * quads; i += blockDim.x) {
        const int t = i / quads, c = i % quads * 4, at = start + t;
        Four x = {};
        float scale = 1;
        if (at < end) {
            const int block = a.block_table[sequence * a.max_blocks + at / a.kv.block_tokens];
            const int token = at % a.kv.block_tokens;
            const uint8_t* row = kv_row(a.kv, a.layer, block, which, kv_head, token);
            if (is_codes(a.kv)) {
                const float2 grid = *kv_grid(a.kv, a.layer, block, which, kv_head, token);
                x = load_codes(row, c, a.kv.dtype, grid.y);
                scale = grid.x;
            } else {
                x = load4(row, c, a.kv.dtype);
            }
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) s.kv[t * s.stride + c + j] = x.x[j];
        if (c == 0) s.scales[which * kTokens + t] = scale;
    }
}

// One step of 32 positions: scores, probabilities, weighted values.
template <int kWide>
__device__ __forceinline__ void attend(const AttentionArgs& a, const Tile& s, Running<kWide>& part, int sequence,
                                       int kv_head, int start, int tile_end, int first, int end, float slope) {
    const int row = threadIdx.x / kLanes, lane = threadIdx.x % kLanes, head = a.kv.head_size;
    __syncthreads();
    load_tokens(a, s, 0, sequence, kv_head, start, tile_end);
    __syncthreads();
    constexpr int kEach = kTokens / kLanes;
    float score[kEach] = {};
    for (int c = 0; c < a.D; ++c) {
        const float q = s.q[row * s.stride + c];
#pragma unroll
        for (int i = 0; i < kEach; ++i) score[i] = fmaf(q, s.kv[(lane + kLanes * i) * s.stride + c], score[i]);
    }
    float top = part.m;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
        const int t = lane + kLanes * i;
        score[i] = masked_score(a, score[i] * s.scales[t], start + t, first, end, slope);
        top = fmaxf(top, score[i]);
        if (score[i] != score[i]) top = score[i];
    }
#pragma unroll
    for (int bit = 1; bit < kLanes; bit <<= 1) {
        const float other = __shfl_xor_sync(kWarp, top, bit);
        top = other > top || other != other ? other : top;
    }
    __syncthreads();  // all have read the keys
    load_tokens(a, s, 1, sequence, kv_head, start, tile_end);
    __syncthreads();
    const float decay = exp_below(part.m, top);
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
        const int t = lane + kLanes * i;
        const float p = score[i] == minus_infinity() ? 0.0f : exp_below(score[i], top);
        sum += p;
        s.p[row * (kTokens + 1) + t] = rounded_to(p * s.scales[kTokens + t], operand_type(a.kv));
    }
#pragma unroll
    for (int bit = 1; bit < kLanes; bit <<= 1) sum += __shfl_xor_sync(kWarp, sum, bit);
    __syncwarp();  // a row's threads are in one warp
    part.m = top;
    part.l = fmaf(part.l, decay, sum);
#pragma unroll
    for (int j = 0; j < kWide; ++j) part.o[j] *= decay;
    for (int t = 0; t < kTokens; ++t) {
        const float p = s.p[row * (kTokens + 1) + t];
#pragma unroll
        for (int j = 0; j < kWide; ++j)
            if (kLanes * j < head) part.o[j] = fmaf(p, s.kv[t * s.stride + kLanes * j + lane], part.o[j]);
    }
}

template <int kWide>
__device__ __forceinline__ void attention(const AttentionArgs& a) {
    SHARED_DYNAMIC(float, shared);
    if (static_cast<int>(blockIdx.x) >= count(a.works)) return;
    const AttentionWork work = a.work[blockIdx.x];
    const Query query(a, work.sequence);
    const int kv_head = blockIdx.y, row = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
    const Tile s = tile_of(shared, a.kv.head_size);

    for (int i = threadIdx.x; i < kRows * a.D; i += blockDim.x) {
        const int r = i / a.D, c = i % a.D, from = work.row0 + r;
        float q = 0;
        if (r < work.rows)
            q = load1(a.q, query.token_row(from), query.head(from, kv_head) * a.kv.head_size + c) * a.scale;
        s.q[r * s.stride + c] = rounded_to(q, operand_type(a.kv));
    }

    // What this thread's row sees, and what any row of the block sees.
    const bool real = row < work.rows;
    const int from = work.row0 + (real ? row : 0), at = query.position_of(from);
    const int first = real ? query.first(at, a.window) : 0, end = real ? query.end(at) : 0;
    const int last = query.position_of(work.row0 + work.rows - 1);
    const int seen = max(work.kv0, query.first(query.position_of(work.row0), a.window));
    const int seen_end = min(work.kv1, max(query.end(query.position_of(work.row0)), query.end(last)));
    const int head = query.head(from, kv_head);
    const float slope = a.alibi ? a.alibi[head] : 0.0f;

    Running<kWide> total, part;
    const bool whole = work.part < 0;
    total.clear(whole && a.sinks ? a.sinks[head] : minus_infinity(), whole && a.sinks ? 1.0f : 0.0f);
    for (int split = seen / kAttentionSplit * kAttentionSplit; split < seen_end; split += kAttentionSplit) {
        part.clear(minus_infinity(), 0);
        const int stop = min(split + kAttentionSplit, seen_end);
        for (int start = split; start < stop; start += kTokens)
            if (start + kTokens > seen) attend(a, s, part, work.sequence, kv_head, start, stop, first, end, slope);
        total.merge(part);
    }

    if (!real) return;
    if (!whole) {
        const int64_t to = part_row(a, work.part, kv_head, row);
#pragma unroll
        for (int j = 0; j < kWide; ++j)
            if (kLanes * j < a.kv.head_size) a.part_sum[to * a.kv.head_size + kLanes * j + lane] = total.o[j];
        if (lane == 0) a.part_max[2 * to] = total.m, a.part_max[2 * to + 1] = total.l;
        return;
    }
#pragma unroll
    for (int j = 0; j < kWide; ++j)
        if (kLanes * j < a.kv.head_size)
            store1(a.out, query.token_row(from), head * a.kv.head_size + kLanes * j + lane,
                   total.l == 0.0f ? 0.0f : total.o[j] / total.l + 0.0f);
}

}  // namespace
}  // namespace di

// grid (works, Hkv), block 128
#define ATTENTION(name, wide)                                                                                  \
    extern "C" __global__ void __launch_bounds__(128, 1) name(di::AttentionArgs a) { di::attention<wide>(a); } \
    EXPORT_KERNEL(name)
ATTENTION(attention_fma_64, 8)
ATTENTION(attention_fma_128, 16)
ATTENTION(attention_fma_256, 32)
