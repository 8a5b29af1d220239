// Paged attention on tensor cores: 16-bit caches, and codes, which become integers in bf16 on their way to shared
// memory. Before SM80 there is fp16 alone: all caches become that, values of codes with their scales. For prefill each
// of four warps has 16 query rows; for decode the block has 16 rows, the query heads of a KV head, and its warps share
// out the tokens. The running softmax stays in registers (source: FlashAttention-2, arXiv:2307.08691).
#include "attention.cuh"
#include "tile.cuh"

namespace di {
namespace {

constexpr int kWarps = 4;

template <int kHead_, bool kDecode_>
struct Shape {
    static constexpr int kHead = kHead_;
    static constexpr bool kDecode = kDecode_;
    static constexpr int kRows = kDecode ? 16 : 64;
    static constexpr int kTokens = kDecode || kHead <= 128 ? 64 : DI_ARCH < 800 ? 16 : 32;  // in shared memory
    static constexpr int kStride = kHead + 8;  // eight rows of a matrix in different banks
    static constexpr int kWarpTokens = kDecode ? kTokens / kWarps : kTokens;  // of a tile
    static constexpr int kScoreTiles = kWarpTokens / 16, kHeadTiles = kHead / 16;
    static constexpr int kRowBytes = 2 * kStride;
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

// A number as a tile holds it. What fp16 cannot hold becomes its largest number; caches and queries have no such.
__device__ __forceinline__ float within(float x, bf16) { return x; }
__device__ __forceinline__ float within(float x, f16) {
    return x > 65504.0f ? 65504.0f : x < -65504.0f ? -65504.0f : x;
}

constexpr bool kOnlyF16 = DI_ARCH < 800;

// Eight columns of bf16 in fp16.
__device__ __forceinline__ uint4 eight_bf16(const uint8_t* row, int c) {
    const uint4 bits = *reinterpret_cast<const uint4*>(row + 2 * c);
    const uint32_t pairs[4] = {bits.x, bits.y, bits.z, bits.w};
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
        words[i] = pack(within(__uint_as_float(pairs[i] << 16), f16{}),
                        within(__uint_as_float(pairs[i] & 0xffff0000u), f16{}), f16{});
    return make_uint4(words[0], words[1], words[2], words[3]);
}

// Eight columns of codes as integers in T, times `scale`.
template <class T>
__device__ __forceinline__ uint4 eight_codes(const uint8_t* row, int c, int dtype, float zero, float scale) {
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
        const float low = static_cast<float>(pair & 0xff) - zero, high = static_cast<float>(pair >> 8 & 0xff) - zero;
        words[i] = kOnlyF16 ? pack(within(low * scale, T{}), within(high * scale, T{}), T{}) : pack(low, high, T{});
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
        if (kOnlyF16 && a.kv.dtype == BF16) {
            *reinterpret_cast<uint4*>(piece) = there ? eight_bf16(row, c) : make_uint4(0, 0, 0, 0);
            continue;
        }
        if (!is_codes(a.kv)) {
            cp_async16(piece, row + (there ? 2 * c : 0), there);
            continue;
        }
        const float2 grid = there ? *kv_grid(a.kv, a.layer, block, which, kv_head, token) : make_float2(1, 0);
        const float scale = which ? grid.x : 1.0f;
        *reinterpret_cast<uint4*>(piece) =
            there ? eight_codes<T>(row, c, a.kv.dtype, grid.y, scale) : make_uint4(0, 0, 0, 0);
        if (c == 0) scales[t] = grid.x;
    }
    cp_async_commit();
}

// The two rows of a lane: what they see, their softmax so far, its columns of each tile.
template <class S>
struct Rows2 {
    int first[2], end[2];
    float slope[2], m[2], l[2];
    Tile o[S::kHeadTiles];
};

__device__ __forceinline__ const unsigned char* bytes_of(const void* p) { return static_cast<const unsigned char*>(p); }

template <class T, class S>
__device__ __forceinline__ void scores_of(Tile (&score)[S::kScoreTiles], const T* q, const T* k, int lane) {
#pragma unroll
    for (int t = 0; t < S::kScoreTiles; ++t)
#pragma unroll
        for (int e = 0; e < 8; ++e) score[t][e / 4][e % 4] = 0;
#pragma unroll
    for (int c = 0; c < S::kHead; c += 16) {
        uint32_t a[kOperand];
        load_rows(a, bytes_of(q + c), S::kRowBytes, lane);
#pragma unroll
        for (int t = 0; t < S::kScoreTiles; ++t) {
            uint32_t b[kOperand];
            load_columns(b, bytes_of(k + 16 * t * S::kStride + c), S::kRowBytes, lane);
            mma_tile(score[t], a, b, T{});
        }
    }
}

__device__ __forceinline__ float larger(float a, float b) { return a > b || a != a ? a : b; }  // a NaN wins

// exp(x - top), 0 for x = -inf, 1 where both are equal.
__device__ __forceinline__ float exp_to(float x, float top) { return x == top ? 1.0f : __expf(x - top); }

// score = change(score, its row of the lane's two, its column) for all of a lane's scores.
template <class S, class F>
__device__ __forceinline__ void each_score(Tile (&score)[S::kScoreTiles], int lane, F change) {
#pragma unroll
    for (int t = 0; t < S::kScoreTiles; ++t)
#pragma unroll
        for (int e = 0; e < 8; ++e) {
            float& s = score[t][e / 4][e % 4];
            s = change(s, e % 4 / 2, 16 * t + tile_column(lane, e / 4, e % 4));
        }
}

// What comes between scores and probabilities: scales of codes, cap, slopes, masks.
template <class S>
__device__ __forceinline__ void mask_scores(const AttentionArgs& a, const Rows2<S>& rows, Tile (&score)[S::kScoreTiles],
                                            const float* key_scales, int start, int lane) {
    if (is_codes(a.kv)) each_score<S>(score, lane, [&](float s, int, int column) { return s * key_scales[column]; });
    if (a.softcap != 0.0f) {  // cap · tanh(x / cap)
        const float factor = 2.0f / a.softcap;
        each_score<S>(score, lane, [&](float s, int, int) {
            return a.softcap - __fdividef(2.0f * a.softcap, 1.0f + __expf(s * factor));
        });
    }
    if (a.alibi)
        each_score<S>(score, lane, [&](float s, int r, int column) {
            return fmaf(rows.slope[r], static_cast<float>(start + column), s);
        });
    each_score<S>(score, lane, [&](float s, int r, int column) {
        return start + column < rows.first[r] || start + column >= rows.end[r] ? minus_infinity() : s;
    });
}

// Scores become probabilities below the new maximum; the sums so far are scaled to it.
template <class S>
__device__ __forceinline__ void soften(Rows2<S>& rows, Tile (&score)[S::kScoreTiles]) {
    float decay[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        float top = rows.m[r], sum = 0;
#pragma unroll
        for (int t = 0; t < S::kScoreTiles; ++t)
#pragma unroll
            for (int j = 0; j < 2; ++j) top = larger(score[t][j][2 * r + 1], larger(score[t][j][2 * r], top));
        top = larger(__shfl_xor_sync(kWarp, top, kRowBit0), top);
        top = larger(__shfl_xor_sync(kWarp, top, kRowBit1), top);
        const float reference = top == minus_infinity() ? 0.0f : top;  // a row that sees nothing yet
#pragma unroll
        for (int t = 0; t < S::kScoreTiles; ++t)
#pragma unroll
            for (int j = 0; j < 2; ++j)
#pragma unroll
                for (int i = 2 * r; i < 2 * r + 2; ++i) {
                    score[t][j][i] = __expf(score[t][j][i] - reference);
                    sum += score[t][j][i];
                }
        sum += __shfl_xor_sync(kWarp, sum, kRowBit0);
        sum += __shfl_xor_sync(kWarp, sum, kRowBit1);
        decay[r] = exp_to(rows.m[r], top);
        rows.m[r] = top;
        rows.l[r] = fmaf(rows.l[r], decay[r], sum);
    }
#pragma unroll
    for (int d = 0; d < S::kHeadTiles; ++d)
#pragma unroll
        for (int e = 0; e < 8; ++e) rows.o[d][e / 4][e % 4] *= decay[e % 4 / 2];
}

template <class T, class S>
__device__ __forceinline__ void add_values(const AttentionArgs& a, Rows2<S>& rows, Tile (&p)[S::kScoreTiles],
                                           const T* v, const float* value_scales, int lane) {
#pragma unroll
    for (int t = 0; t < S::kScoreTiles; ++t) {
        if (!kOnlyF16 && is_codes(a.kv))
#pragma unroll
            for (int e = 0; e < 8; ++e) p[t][e / 4][e % 4] *= value_scales[16 * t + tile_column(lane, e / 4, e % 4)];
        const uint32_t pairs[2][2] = {{pack(p[t][0][0], p[t][0][1], T{}), pack(p[t][0][2], p[t][0][3], T{})},
                                      {pack(p[t][1][0], p[t][1][1], T{}), pack(p[t][1][2], p[t][1][3], T{})}};
        uint32_t w[kOperand];
        rows_of_sums(w, pairs, lane);
#pragma unroll
        for (int d = 0; d < S::kHeadTiles; ++d) {
            uint32_t b[kOperand];
            load_columns_across(b, bytes_of(v + 16 * t * S::kStride + 16 * d), S::kRowBytes, lane);
            mma_tile_across(rows.o[d], w, b, T{});
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

__device__ __forceinline__ bool is_first_of_row(int lane) { return (lane & (kRowBit0 | kRowBit1)) == 0; }

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
        if (is_first_of_row(lane)) s.m[warp][tile_row(lane, r)] = rows.m[r], s.l[warp][tile_row(lane, r)] = rows.l[r];
#pragma unroll
    for (int d = 0; d < S::kHeadTiles; ++d)
#pragma unroll
        for (int e = 0; e < 8; ++e)
            s.o[warp][tile_row(lane, e % 4 / 2)][16 * d + tile_column(lane, e / 4, e % 4)] = rows.o[d][e / 4][e % 4];
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
        s.q[r * S::kStride + c] = from_float<T>(within(q, T{}));
    }

    const int my_rows = S::kDecode ? 0 : 16 * warp, my_tokens = S::kDecode ? S::kWarpTokens * warp : 0;
    Rows2<S> rows = {};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const int row = my_rows + tile_row(lane, r), at = query.position_of(work.row0 + row);
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
        Tile score[S::kScoreTiles];
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
            const Target to = target_of(a, work, query, kv_head, my_rows + tile_row(lane, r), rows.m[r], rows.l[r],
                                        is_first_of_row(lane));
#pragma unroll
            for (int d = 0; d < S::kHeadTiles; ++d)
#pragma unroll
                for (int j = 0; j < 2; ++j)
                    to.store(16 * d + tile_column(lane, j, 0), rows.o[d][j][2 * r], rows.o[d][j][2 * r + 1]);
        }
    }
}

// Blocks that a processor's registers must have room for: as many as its shared memory, from SM80 on.
template <int head>
constexpr int kBlocks = DI_ARCH >= 800 && head <= 128 ? 3 : 1;

}  // namespace
}  // namespace di

// grid (works, Hkv), block 128
#define ATTENTION(name, T, head, decode)                                                             \
    extern "C" __global__ void __launch_bounds__(128, di::kBlocks<head>) name(di::AttentionArgs a) { \
        di::attention<T, di::Shape<head, decode>>(a);                                                \
    }                                                                                                \
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
