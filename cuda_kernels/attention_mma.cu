// Paged attention on tensor cores: 16-bit caches, and codes, which become integers in bf16 on their way to shared
// memory. For prefill each of four warps has 16 query rows; for decode the block has 16 rows, the query heads of a KV
// head, and its warps share out the tokens. The running softmax stays in registers (source: FlashAttention-2,
// arXiv:2307.08691).
#include "attention.cuh"

#if DI_ARCH >= 750

namespace di {
namespace {

constexpr int kWarps = 4;

template <int kHead_, bool kDecode_>
struct Shape {
    static constexpr int kHead = kHead_;
    static constexpr bool kDecode = kDecode_;
    static constexpr int kRows = kDecode ? 16 : 64;
    static constexpr int kTokens = kDecode || kHead <= 128 ? 64 : 32;
    static constexpr int kStride = kHead + 8;  // eight rows of a matrix in different banks
    static constexpr int kWarpTokens = kDecode ? kTokens / kWarps : kTokens;  // of a tile
    static constexpr int kScoreTiles = kWarpTokens / 8, kHeadTiles = kHead / 8;
};

template <class T, class S>
struct Tiles {
    T* q;           // [kRows][kStride]
    T* k;           // [kTokens][kStride]
    T* v;           // [kTokens][kStride]
    float* scales;  // [K | V][kTokens]
    __device__ __forceinline__ explicit Tiles(unsigned char* shared) {
        q = reinterpret_cast<T*>(shared);
        k = q + S::kRows * S::kStride;
        v = k + S::kTokens * S::kStride;
        scales = reinterpret_cast<float*>(v + S::kTokens * S::kStride);
    }
};

__device__ __forceinline__ uint32_t pack(float low, float high, bf16) {
    return from_float<bf16>(low).u | static_cast<uint32_t>(from_float<bf16>(high).u) << 16;
}
__device__ __forceinline__ uint32_t pack(float low, float high, f16) {
    return from_float<f16>(low).u | static_cast<uint32_t>(from_float<f16>(high).u) << 16;
}

// Eight columns of codes as integers in T.
template <class T>
__device__ __forceinline__ uint4 eight_codes(const uint8_t* row, int c, int dtype, float zero) {
    uint32_t words[4];
    uint2 bytes;
    if (dtype == U8) {
        bytes = *reinterpret_cast<const uint2*>(row + c);
    } else {
        const uint32_t w = *reinterpret_cast<const uint32_t*>(row + c / 2);
        const uint32_t even = w & 0x0F0F0F0Fu, odd = w >> 4 & 0x0F0F0F0Fu;
        bytes = make_uint2(__byte_perm(even, odd, 0x5140), __byte_perm(even, odd, 0x7362));
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const uint32_t pair = (i < 2 ? bytes.x : bytes.y) >> (16 * (i & 1));
        words[i] = pack(static_cast<float>(pair & 0xff) - zero, static_cast<float>(pair >> 8 & 0xff) - zero, T{});
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
}

// Keys or values of the positions [start, end) of a sequence; zeros beyond, and in columns that the head lacks.
template <class T, class S>
__device__ __forceinline__ void load_tokens(const AttentionArgs& a, T* to, float* scales, int which, int sequence,
                                            int kv_head, int start, int end) {
    constexpr int kPieces = S::kHead / 8;
    for (int i = threadIdx.x; i < S::kTokens * kPieces; i += blockDim.x) {
        const int t = i / kPieces, c = i % kPieces * 8, at = start + t;
        const bool there = at < end && c < a.kv.head_size;
        const int page = there ? at / a.kv.block_tokens : start / a.kv.block_tokens;
        const int block = a.block_table[sequence * a.max_blocks + page], token = there ? at % a.kv.block_tokens : 0;
        const uint8_t* row = kv_row(a.kv, a.layer, block, which, kv_head, token);
        T* piece = to + t * S::kStride + c;
        if (!is_codes(a.kv)) {
            cp_async16(piece, row + (there ? 2 * c : 0), there);
            continue;
        }
        const float2 grid = there ? *kv_grid(a.kv, a.layer, block, which, kv_head, token) : make_float2(1, 0);
        *reinterpret_cast<uint4*>(piece) = there ? eight_codes<T>(row, c, a.kv.dtype, grid.y) : make_uint4(0, 0, 0, 0);
        if (c == 0) scales[t] = grid.x;
    }
    cp_async_commit();
}

// Rows lane / 4 and lane / 4 + 8 of a warp: what they see, their softmax so far, columns 2 (lane mod 4) of each tile.
template <class S>
struct Rows2 {
    int first[2], end[2];
    float slope[2], m[2], l[2];
    float o[S::kHeadTiles][4];
};

template <class T, class S>
__device__ __forceinline__ void scores_of(float (&score)[S::kScoreTiles][4], const T* q, const T* k, int lane) {
#pragma unroll
    for (int j = 0; j < S::kScoreTiles; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) score[j][i] = 0;
#pragma unroll
    for (int c = 0; c < S::kHead; c += 16) {
        uint32_t a[4];
        ldmatrix_x4(a, q + lane % 16 * S::kStride + c + lane / 16 * 8);
#pragma unroll
        for (int j = 0; j < S::kScoreTiles; j += 2) {
            uint32_t b[4];
            ldmatrix_x4(b, k + (8 * j + lane / 16 * 8 + lane % 8) * S::kStride + c + lane / 8 % 2 * 8);
            const uint32_t left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
            mma_16816(score[j], a, left, T{});
            mma_16816(score[j + 1], a, right, T{});
        }
    }
}

__device__ __forceinline__ float larger(float a, float b) { return a > b || a != a ? a : b; }  // a NaN wins

// exp(x - top), 0 for x = -inf, 1 where both are equal.
__device__ __forceinline__ float exp_to(float x, float top) { return x == top ? 1.0f : __expf(x - top); }

// What comes between scores and probabilities: scales of codes, cap, slopes, masks.
template <class S>
__device__ __forceinline__ void mask_scores(const AttentionArgs& a, const Rows2<S>& rows,
                                            float (&score)[S::kScoreTiles][4], const float* key_scales, int start,
                                            int lane) {
    const int column = 2 * (lane % 4);
    if (is_codes(a.kv)) {
#pragma unroll
        for (int j = 0; j < S::kScoreTiles; ++j)
#pragma unroll
            for (int i = 0; i < 4; ++i) score[j][i] *= key_scales[8 * j + column + i % 2];
    }
    if (a.softcap != 0.0f) {  // cap · tanh(x / cap)
        const float factor = 2.0f / a.softcap;
#pragma unroll
        for (int j = 0; j < S::kScoreTiles; ++j)
#pragma unroll
            for (int i = 0; i < 4; ++i)
                score[j][i] = a.softcap - __fdividef(2.0f * a.softcap, 1.0f + __expf(score[j][i] * factor));
    }
    if (a.alibi) {
#pragma unroll
        for (int j = 0; j < S::kScoreTiles; ++j)
#pragma unroll
            for (int i = 0; i < 4; ++i)
                score[j][i] = fmaf(rows.slope[i / 2], static_cast<float>(start + 8 * j + column + i % 2), score[j][i]);
    }
#pragma unroll
    for (int j = 0; j < S::kScoreTiles; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int at = start + 8 * j + column + i % 2;
            if (at < rows.first[i / 2] || at >= rows.end[i / 2]) score[j][i] = minus_infinity();
        }
}

// Scores become probabilities below the new maximum; the sums so far are scaled to it.
template <class S>
__device__ __forceinline__ void soften(Rows2<S>& rows, float (&score)[S::kScoreTiles][4]) {
    float decay[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        float top = rows.m[r], sum = 0;
#pragma unroll
        for (int j = 0; j < S::kScoreTiles; ++j) top = larger(score[j][2 * r + 1], larger(score[j][2 * r], top));
        top = larger(__shfl_xor_sync(kWarp, top, 1), top);
        top = larger(__shfl_xor_sync(kWarp, top, 2), top);
        const float reference = top == minus_infinity() ? 0.0f : top;  // a row that sees nothing yet
#pragma unroll
        for (int j = 0; j < S::kScoreTiles; ++j)
#pragma unroll
            for (int i = 2 * r; i < 2 * r + 2; ++i) {
                score[j][i] = __expf(score[j][i] - reference);
                sum += score[j][i];
            }
        sum += __shfl_xor_sync(kWarp, sum, 1);
        sum += __shfl_xor_sync(kWarp, sum, 2);
        decay[r] = exp_to(rows.m[r], top);
        rows.m[r] = top;
        rows.l[r] = fmaf(rows.l[r], decay[r], sum);
    }
#pragma unroll
    for (int d = 0; d < S::kHeadTiles; ++d)
#pragma unroll
        for (int i = 0; i < 4; ++i) rows.o[d][i] *= decay[i / 2];
}

template <class T, class S>
__device__ __forceinline__ void add_values(const AttentionArgs& a, Rows2<S>& rows, float (&p)[S::kScoreTiles][4],
                                           const T* v, const float* value_scales, int lane) {
    if (is_codes(a.kv))
#pragma unroll
        for (int j = 0; j < S::kScoreTiles; ++j)
#pragma unroll
            for (int i = 0; i < 4; ++i) p[j][i] *= value_scales[8 * j + 2 * (lane % 4) + i % 2];
#pragma unroll
    for (int j = 0; j < S::kScoreTiles; j += 2) {
        const uint32_t w[4] = {pack(p[j][0], p[j][1], T{}), pack(p[j][2], p[j][3], T{}),
                               pack(p[j + 1][0], p[j + 1][1], T{}), pack(p[j + 1][2], p[j + 1][3], T{})};
#pragma unroll
        for (int d = 0; d < S::kHeadTiles; d += 2) {
            uint32_t b[4];
            ldmatrix_x4_trans(b, v + (8 * j + lane % 16) * S::kStride + 8 * d + lane / 16 * 8);
            const uint32_t left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
            mma_16816(rows.o[d], w, left, T{});
            mma_16816(rows.o[d + 1], w, right, T{});
        }
    }
}

// Where a row's sums go, and what they are multiplied with.
struct Target {
    View view;
    int64_t row;
    int columns;  // 0: nowhere
    int first;
    float factor;

    __device__ __forceinline__ void store(int c, float x, float y) const {
        if (c >= columns) return;
        store_as(view.data, row + first + c, view.dtype, x * factor + 0.0f);
        store_as(view.data, row + first + c + 1, view.dtype, y * factor + 0.0f);
    }
};

// A whole row is divided by its sum; a part keeps its maximum and sum (`writes`: one thread a row).
__device__ __forceinline__ Target target_of(const AttentionArgs& a, const AttentionWork& work, const Query& query,
                                            int kv_head, int r, float m, float l, bool writes) {
    const int size = a.kv.head_size;
    if (r >= work.rows) return {a.out, 0, 0, 0, 0.0f};
    if (work.part >= 0) {
        const int64_t to = part_row(a, work.part, kv_head, r);
        if (writes) a.part_max[2 * to] = m, a.part_max[2 * to + 1] = l;
        return {{a.part_sum, size, size, F32}, to * size, size, 0, 1.0f};
    }
    const int row = work.row0 + r, head = query.head(row, kv_head);
    float factor = 1;
    if (a.sinks) {
        const float top = larger(m, a.sinks[head]);
        factor = exp_to(m, top);
        l = fmaf(l, factor, exp_to(a.sinks[head], top));
    }
    return {a.out, query.token_row(row) * a.out.stride, size, head * size, l == 0.0f ? 0.0f : factor / l};
}

// Decode: the warps' softmaxes over different tokens become one.
template <class S>
struct WarpSums {
    float m[kWarps][16], l[kWarps][16];
    float o[kWarps][16][S::kHead + 2];
};

template <class S>
__device__ __forceinline__ void finish_decode(const AttentionArgs& a, const AttentionWork& work, const Query& query,
                                              int kv_head, const Rows2<S>& rows, WarpSums<S>& s, int lane, int warp) {
#pragma unroll
    for (int r = 0; r < 2; ++r)
        if (lane % 4 == 0) s.m[warp][lane / 4 + 8 * r] = rows.m[r], s.l[warp][lane / 4 + 8 * r] = rows.l[r];
#pragma unroll
    for (int d = 0; d < S::kHeadTiles; ++d)
#pragma unroll
        for (int i = 0; i < 4; ++i) s.o[warp][lane / 4 + i / 2 * 8][8 * d + 2 * (lane % 4) + i % 2] = rows.o[d][i];
    __syncthreads();
    const int r = threadIdx.x / 8;  // eight threads a row
    float top = s.m[0][r], l = 0, factor[kWarps];
#pragma unroll
    for (int w = 1; w < kWarps; ++w) top = larger(s.m[w][r], top);
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
        factor[w] = exp_to(s.m[w][r], top);
        l = fmaf(s.l[w][r], factor[w], l);
    }
    const Target to = target_of(a, work, query, kv_head, r, top, l, threadIdx.x % 8 == 0);
    for (int c = 2 * (threadIdx.x % 8); c < to.columns; c += 16) {
        float x = 0, y = 0;
#pragma unroll
        for (int w = 0; w < kWarps; ++w) {
            x = fmaf(s.o[w][r][c], factor[w], x);
            y = fmaf(s.o[w][r][c + 1], factor[w], y);
        }
        to.store(c, x, y);
    }
}

template <class T, class S>
__device__ __forceinline__ void attention(const AttentionArgs& a) {
    SHARED_DYNAMIC(unsigned char, shared);
    if (static_cast<int>(blockIdx.x) >= count(a.works)) return;
    const AttentionWork work = a.work[blockIdx.x];
    const Query query(a, work.sequence);
    const int kv_head = blockIdx.y, lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const Tiles<T, S> s(shared);

    for (int i = threadIdx.x; i < S::kRows * S::kHead; i += blockDim.x) {
        const int r = i / S::kHead, c = i % S::kHead, row = work.row0 + r;
        float q = 0;
        if (r < work.rows && c < a.D)
            q = load1(a.q, query.token_row(row), query.head(row, kv_head) * a.kv.head_size + c) * a.scale;
        s.q[r * S::kStride + c] = from_float<T>(q);
    }

    const int my_rows = S::kDecode ? 0 : 16 * warp, my_tokens = S::kDecode ? S::kWarpTokens * warp : 0;
    Rows2<S> rows = {};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const int row = my_rows + lane / 4 + 8 * r, at = query.position_of(work.row0 + row);
        const bool real = row < work.rows;
        rows.first[r] = query.first(at, a.window);
        rows.end[r] = real ? min(query.end(at), work.kv1) : 0;
        rows.slope[r] = real && a.alibi ? a.alibi[query.head(work.row0 + row, kv_head)] : 0.0f;
        rows.m[r] = minus_infinity();
    }
    // What any row of the block sees.
    const int from = query.position_of(work.row0), last = query.position_of(work.row0 + work.rows - 1);
    const int seen = max(work.kv0, query.first(from, a.window));
    const int end = min(work.kv1, max(query.end(from), query.end(last)));
    const int begin = max(work.kv0, seen / S::kTokens * S::kTokens);

    if (begin < end) load_tokens<T, S>(a, s.k, s.scales, 0, work.sequence, kv_head, begin, end);
    for (int start = begin; start < end; start += S::kTokens) {
        cp_async_wait<0>();
        __syncthreads();  // the keys are here, and all have read the last values
        load_tokens<T, S>(a, s.v, s.scales + S::kTokens, 1, work.sequence, kv_head, start, end);
        float score[S::kScoreTiles][4];
        scores_of<T, S>(score, s.q + my_rows * S::kStride, s.k + my_tokens * S::kStride, lane);
        mask_scores<S>(a, rows, score, s.scales + my_tokens, start + my_tokens, lane);
        soften<S>(rows, score);
        cp_async_wait<0>();
        __syncthreads();  // the values are here, and all have read the keys
        if (start + S::kTokens < end)
            load_tokens<T, S>(a, s.k, s.scales, 0, work.sequence, kv_head, start + S::kTokens, end);
        add_values<T, S>(a, rows, score, s.v + my_tokens * S::kStride, s.scales + S::kTokens + my_tokens, lane);
    }
    if constexpr (S::kDecode) {
        __syncthreads();
        finish_decode<S>(a, work, query, kv_head, rows, *reinterpret_cast<WarpSums<S>*>(shared), lane, warp);
    } else {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const Target to =
                target_of(a, work, query, kv_head, my_rows + lane / 4 + 8 * r, rows.m[r], rows.l[r], lane % 4 == 0);
#pragma unroll
            for (int d = 0; d < S::kHeadTiles; ++d)
                to.store(8 * d + 2 * (lane % 4), rows.o[d][2 * r], rows.o[d][2 * r + 1]);
        }
    }
}

}  // namespace
}  // namespace di

// grid (works, Hkv), block 128
#define ATTENTION(name, T, head, decode)                                             \
    extern "C" __global__ void __launch_bounds__(128, 1) name(di::AttentionArgs a) { \
        di::attention<T, di::Shape<head, decode>>(a);                                \
    }                                                                                \
    EXPORT_KERNEL(name)
ATTENTION(attention_prefill_64_f16, f16, 64, false)
ATTENTION(attention_prefill_128_f16, f16, 128, false)
ATTENTION(attention_prefill_256_f16, f16, 256, false)
ATTENTION(attention_decode_64_f16, f16, 64, true)
ATTENTION(attention_decode_128_f16, f16, 128, true)
ATTENTION(attention_decode_256_f16, f16, 256, true)
#if DI_ARCH >= 800
ATTENTION(attention_prefill_64_bf16, bf16, 64, false)
ATTENTION(attention_prefill_128_bf16, bf16, 128, false)
ATTENTION(attention_prefill_256_bf16, bf16, 256, false)
ATTENTION(attention_decode_64_bf16, bf16, 64, true)
ATTENTION(attention_decode_128_bf16, bf16, 128, true)
ATTENTION(attention_decode_256_bf16, bf16, 256, true)
#endif

#endif  // DI_ARCH >= 750
