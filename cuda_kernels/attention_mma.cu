// Paged attention on tensor cores: 16-bit caches, and codes, which become integers in bf16 on their way to shared memory.
// For prefill each of four warps has 16 query rows; for decode the block has 16 rows, the query heads of a KV head, and
// its warps share out the tokens. The running softmax stays in registers (source: FlashAttention-2, arXiv:2307.08691).
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
    static constexpr int kStride = kHead + 8;                              // eight rows of a matrix in different banks
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

// Scores become probabilities below the new maximum; the sums so far are scaled to it.
template <class S>
__device__ __forceinline__ void soften(const AttentionArgs& a, Rows2<S>& rows, float (&score)[S::kScoreTiles][4],
                                       const float* key_scales, int start, int lane) {
    float top[2] = {rows.m[0], rows.m[1]};
#pragma unroll
    for (int j = 0; j < S::kScoreTiles; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int t = 8 * j + 2 * (lane % 4) + i % 2, r = i / 2;
            const float x = is_codes(a.kv) ? score[j][i] * key_scales[t] : score[j][i];
            score[j][i] = masked_score(a, x, start + t, rows.first[r], rows.end[r], rows.slope[r]);
            top[r] = larger(score[j][i], top[r]);
        }
    float decay[2], sum[2] = {};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        top[r] = larger(__shfl_xor_sync(kWarp, top[r], 1), top[r]);
        top[r] = larger(__shfl_xor_sync(kWarp, top[r], 2), top[r]);
        decay[r] = rows.m[r] == top[r] ? 1.0f : __expf(rows.m[r] - top[r]);
        rows.m[r] = top[r];
    }
#pragma unroll
    for (int j = 0; j < S::kScoreTiles; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float x = score[j][i];
            score[j][i] = x == minus_infinity() ? 0.0f : __expf(x - top[i / 2]);
            sum[i / 2] += score[j][i];
        }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        sum[r] += __shfl_xor_sync(kWarp, sum[r], 1);
        sum[r] += __shfl_xor_sync(kWarp, sum[r], 2);
        rows.l[r] = fmaf(rows.l[r], decay[r], sum[r]);
    }
#pragma unroll
    for (int d = 0; d < S::kHeadTiles; ++d)
#pragma unroll
        for (int i = 0; i < 4; ++i) rows.o[d][i] *= decay[i / 2];
}

template <class T, class S>
__device__ __forceinline__ void add_values(const AttentionArgs& a, Rows2<S>& rows, float (&p)[S::kScoreTiles][4], const T* v,
                                           const float* value_scales, int lane) {
    if (is_codes(a.kv))
#pragma unroll
        for (int j = 0; j < S::kScoreTiles; ++j)
#pragma unroll
            for (int i = 0; i < 4; ++i) p[j][i] *= value_scales[8 * j + 2 * (lane % 4) + i % 2];
#pragma unroll
    for (int j = 0; j < S::kScoreTiles; j += 2) {
        const uint32_t w[4] = {pack(p[j][0], p[j][1], T{}), pack(p[j][2], p[j][3], T{}), pack(p[j + 1][0], p[j + 1][1], T{}),
                               pack(p[j + 1][2], p[j + 1][3], T{})};
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

// Decode: the warps' softmaxes over different tokens become one. A thread of the block then has columns of one row.
template <class S>
struct WarpSums {
    float m[kWarps][16], l[kWarps][16];
    float o[kWarps][16][S::kHead + 2];
};

__device__ __forceinline__ void put(const AttentionArgs& a, const AttentionWork& work, const Query& query, int kv_head, int r,
                                    int c, float m, float l, float o) {
    if (c >= a.kv.head_size) return;
    if (work.part >= 0) {
        const int64_t to = part_row(a, work.part, kv_head, r);
        a.part_sum[to * a.kv.head_size + c] = o;
        if (c == 0) a.part_max[2 * to] = m, a.part_max[2 * to + 1] = l;
        return;
    }
    const int row = work.row0 + r, head = query.head(row, kv_head);
    float scaled = 1;
    if (a.sinks) {
        const float sink = a.sinks[head], top = larger(m, sink);
        scaled = m == top ? 1.0f : __expf(m - top);
        l = fmaf(l, scaled, sink == top ? 1.0f : __expf(sink - top));
    }
    store1(a.out, query.token_row(row), head * a.kv.head_size + c, l == 0.0f ? 0.0f : o * scaled / l + 0.0f);
}

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
    for (int i = threadIdx.x; i < work.rows * S::kHead; i += blockDim.x) {
        const int r = i / S::kHead, c = i % S::kHead;
        float top = s.m[0][r], l = 0, o = 0;
        for (int w = 1; w < kWarps; ++w) top = larger(s.m[w][r], top);
        for (int w = 0; w < kWarps; ++w) {
            const float f = s.m[w][r] == top ? 1.0f : __expf(s.m[w][r] - top);
            l = fmaf(s.l[w][r], f, l);
            o = fmaf(s.o[w][r][c], f, o);
        }
        put(a, work, query, kv_head, r, c, top, l, o);
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
        soften<S>(a, rows, score, s.scales + my_tokens, start + my_tokens, lane);
        cp_async_wait<0>();
        __syncthreads();  // the values are here, and all have read the keys
        if (start + S::kTokens < end)
            load_tokens<T, S>(a, s.k, s.scales, 0, work.sequence, kv_head, start + S::kTokens, end);
        add_values<T, S>(a, rows, score, s.v + my_tokens * S::kStride, s.scales + S::kTokens + my_tokens, lane);
    }
    if (S::kDecode) {
        __syncthreads();
        finish_decode<S>(a, work, query, kv_head, rows, *reinterpret_cast<WarpSums<S>*>(shared), lane, warp);
        return;
    }
#pragma unroll
    for (int d = 0; d < S::kHeadTiles; ++d)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int r = my_rows + lane / 4 + i / 2 * 8;
            if (r < work.rows)
                put(a, work, query, kv_head, r, 8 * d + 2 * (lane % 4) + i % 2, rows.m[i / 2], rows.l[i / 2], rows.o[d][i]);
        }
}

}  // namespace
}  // namespace di

// grid (works, Hkv), block 128
#define ATTENTION(name, T, head, decode)                                                                 \
    extern "C" __global__ void __launch_bounds__(128, 1) name(di::AttentionArgs a) {                     \
        di::attention<T, di::Shape<head, decode>>(a);                                                    \
    }                                                                                                    \
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
