// What each kernel is told: one plain struct a kernel, passed by value, the same for the host library and the device.
//
// Activations are row-major. A kernel that works on rows is launched for a bucket (`Rows::most`) and reads from device
// memory how many of them the step has, so that a captured graph serves every step of its bucket.
#pragma once
#if defined(__CUDACC_RTC__)
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#else
#include <stdint.h>
#endif

namespace di {

enum DType : int32_t { F32 = 0, F16 = 1, BF16 = 2, I32 = 3, I8 = 4, U8 = 5, U4 = 6 };  // the values of di_dtype

// [rows, cols], one row every `stride` elements.
struct View {
    void* data;
    int64_t stride;
    int32_t cols;   // padded columns of the range
    int32_t dtype;  // F32, F16 or BF16
};

struct Rows {
    const int32_t* actual;  // null: `most`
    int32_t most;
};

// What follows a product: act(y + bias) [· the other half of a gated pair] + residual, rounded once to out's type.
struct Epilogue {
    View out;
    View residual;      // data null: none; may be `out` itself
    const float* bias;  // [N] or null
    int32_t act;        // di_act; *_MUL writes N/2 columns
};

// ---- rows ----

// out[T,H] = table[token] * scale, or the external hidden state of the row. embed: grid T, block 128
struct EmbedArgs {
    View out;
    const int32_t* tokens;      // [T]; -1-s: last_token[s]
    const int32_t* last_token;  // [slots]
    Rows rows;
    int32_t vocab, hidden;  // hidden: columns of the model; padded ones become 0
    float scale;
    const void* table;  // [V][table_stride] of table_dtype: F32, F16, BF16 …
    int64_t table_stride;
    int32_t table_dtype;
    int32_t n_external;             // capacity of external_row
    const int32_t* external_count;  // device; null: none
    const int32_t* external_row;    // ascending
    const float* external;          // [n][hidden]
};

// The same from a quantized matrix. embed_codes: grid T, block 128
struct Codes {
    const void* codes;     // fragment order, see README.md
    const void* scales;    // [G][N] of scale_dtype
    const int16_t* zeros;  // [G][N]
    int32_t scale_dtype;   // F32, F16 or BF16
    int32_t bits;          // 8 or 4
    int32_t N, G;
    int32_t group;         // elements of K a scale covers
    int32_t group_padded;  // a multiple of 64; K padded = G * group_padded
};
struct EmbedCodesArgs {
    EmbedArgs e;  // table* unused
    Codes w;
};

// out[T,2h] = cos | sin. rope_table: grid T, block 64
struct RopeTableArgs {
    View out;
    const float *inv_freq, *long_inv_freq;
    const int32_t* positions;   // [position_rows][position_stride]
    const int32_t* history;     // [T] max(prompt length, position + 1) of the token's sequence
    const int32_t* prompt_len;  // [T] of the token's sequence
    Rows rows;
    int32_t position_rows, position_stride;
    int32_t kind, half, original;  // di_rope_kind
    int32_t sections[3], interleaved;
    int32_t logn;  // from this position on rows are also multiplied by log(position + 1) / log(logn); 0: none
    float attention, scaling, theta;
};

// RMS norm (bias ignored) or layer norm over the first n columns; padded ones become 0.
// rms_norm, layer_norm: grid T, block 32·n
struct NormArgs {
    View in, out;
    const float *w, *b;
    Rows rows;
    int32_t n;
    float eps;
};

// ---- heads and the KV cache ----

// A block of one layer: K of all heads, V of all heads, then for codes the grids.
//   K, V   [head][token][D]             elements, or codes (two a byte in U4, the even column in the low half)
//   grids  [K | V][head][token][2]      fp32 scale and zero point
struct KvPool {
    uint8_t* data;
    int64_t block_bytes;       // of all layers
    int64_t layer_bytes;       // of one layer in a block
    int32_t heads, head_size;  // head_size: padded, a multiple of 8
    int32_t block_tokens;
    int32_t dtype;  // F32, F16, BF16, U8 or U4
};

// Head norms (where given), rope (where there is a table) of q and k in place, store of k and v.
//   rope_kv: grid (T, Hq + 2 Hkv), block 32      q null: kv_write;   k null: head_norm or rope of q alone
struct HeadsArgs {
    View q, k, v;
    View table;                    // data null: no rope
    const float *q_norm, *k_norm;  // [D] or null
    float eps;
    int32_t Hq, Hkv;
    int32_t D, head;  // head size of the model, and padded: columns from one head to the next
    int32_t rotary, interleaved;
    KvPool kv;
    int32_t layer;
    const int32_t* kv_slot;  // [T] block * block_tokens + token in the block; negative: do not store
    Rows rows;
};

// Zeros blocks. kv_clear: grid (blocks, any), block 256
struct KvClearArgs {
    KvPool kv;
    const int32_t* blocks;
    Rows count;
};

// ---- attention ----

constexpr int32_t kAttentionSplit = 256;  // cache positions of a partial result, aligned to absolute positions

// A piece of work: query rows [row0, row0 + rows) of a sequence, a row being (token, head of the KV head's group),
// token major, against cache positions [kv0, kv1). All KV heads do it.
struct AttentionWork {
    int32_t sequence;
    int32_t row0, rows;
    int32_t kv0, kv1;
    int32_t part;  // -1: the whole of it, written to out; else the number of the partial result
};
// Partial results of the same rows, in order.
struct AttentionMerge {
    int32_t sequence;
    int32_t row0, rows;
    int32_t part, parts;
};
//   attention_…: grid (works, Hkv), block 128        attention_merge: grid (merges, Hkv), block 128
struct AttentionArgs {
    View q, out;  // [T, Hq·head]
    KvPool kv;
    int32_t layer;
    int32_t Hq, Hkv, D;  // D of the model; columns up to kv.head_size are 0
    int32_t window;
    float scale, softcap;
    const float *alibi, *sinks;    // [Hq] or null
    const int32_t* q_offset;       // [B+1]
    const int32_t* kv_len;         // [B]
    const int32_t* bidirectional;  // [B] or null
    const int32_t* block_table;    // [B][max_blocks]
    int32_t max_blocks;
    const AttentionWork* work;
    Rows works;
    const AttentionMerge* merge;
    Rows merges;
    float* part_sum;    // [part][Hkv][tile rows][head] unnormalized
    float* part_max;    // [part][Hkv][tile rows][2] maximum and sum
    int32_t tile_rows;  // rows of a partial result; works have at most so many
};

// ---- products ----

// Which rows of a product meet which expert's matrix. Row t · chosen + j of the product is token t at its j-th expert;
// expert e has the rows [e · N, (e + 1) · N) of the weight.
struct ExpertTile {
    int32_t expert, first, count;  // rows list[first …], of one expert
};
struct Experts {
    int32_t chosen;  // a token; 0: no experts, and nothing below counts
    int32_t experts, N;
    int32_t share;         // rows of the product that have the same row of x: chosen, or 1
    const float* routing;  // [T][routing_stride] the bits of the tokens' experts in ascending order, then their weights
    int64_t routing_stride;
    const int32_t*
        list;  // [T · chosen] rows of the product by expert; null: a block has one row (kernels for few rows)
    const ExpertTile* tiles;
    const int32_t* n_tiles;
};

// x[M,K] · w[N,K]ᵀ → epilogue; with experts M = rows · chosen and N is one expert's
struct LinearArgs {
    Epilogue e;
    Experts experts;
    View x;
    const void* w;  // [N][w_stride]
    int64_t w_stride;
    int32_t w_dtype;  // F32, F16 or BF16; the kernels of a type ignore it
    int32_t N, K;     // padded: multiples of 32
    Rows rows;
};

// Around products of many rows that a library computes, rows [first, first + count) at a time.
//   linear_halves: x[M,K] fp32 → high[count,K] + low[count,K] fp16; zeros beyond the rows. grid count, block 128
//   linear_finish: totals[count,N] → epilogue. grid count, block 128
struct LinearHalvesArgs {
    View x;
    void *high, *low;
    int32_t K, first, count;
    Rows rows;
};
struct LinearFinishArgs {
    Epilogue e;
    const float* totals;
    int32_t N, first, count;
    Rows rows;
};

// planes[M,P·Kp] · codes[N,Kp]ᵀ → epilogue; exact sums, docs/arithmetic.md
struct LinearCodesArgs {
    Epilogue e;
    Experts experts;  // with them w.N counts the rows of all experts
    Codes w;
    const int8_t* planes;
    int64_t planes_stride;  // bytes a row
    const float* grid;      // scales[G], then the bits of Σa[G]
    int64_t grid_stride;
    int32_t n_planes;  // 1 or 2
    Rows rows;
};

// x → int8 planes and grid. quantize: grid (T, G), block 32·n
struct QuantizeArgs {
    View x;
    int8_t* planes;
    int64_t planes_stride;
    float* grid;
    int64_t grid_stride;
    int32_t grid_cols;     // padded columns of the grid; those beyond 2G become 0
    const int32_t* order;  // [K] column of each element, or null
    int32_t K, group, group_padded, n_planes;
    int32_t head, padded_head;  // 0: no heads
    Rows rows;
};

// ---- mixtures of experts ----

// The experts with the largest logits in ascending order (bits), then their weights. route: grid T, block 32
struct RouteArgs {
    View logits, out;  // [T,E] and [T,2·chosen], F32
    int32_t experts, chosen, renormalize;
    float scale;
    Rows rows;
};

// Sorts rows by expert and cuts them into tiles. expert_group: grid 1, block 32·n
struct GroupArgs {
    const float* routing;
    int64_t routing_stride;
    int32_t experts, chosen;  // at most 1024 experts
    int32_t tile_rows;        // the most rows of a tile
    int32_t* list;            // [T · chosen]
    ExpertTile* tiles;        // [min(T · chosen, experts + T · chosen / tile_rows)]
    int32_t* n_tiles;
    Rows rows;  // tokens
};

// out[t] = residual[t] + Σ_j weight[t,j] · y[t · chosen + j], one fma each. expert_sum: grid T, block 128
struct ExpertSumArgs {
    View y, residual, out;  // y F32; residual data null: none
    const float* routing;
    int64_t routing_stride;
    int32_t chosen;
    Rows rows;
};

// ---- elementwise ----

enum PointwiseOp : int32_t { POINT_ACT, POINT_MUL, POINT_ADD, POINT_SCALE, POINT_SOFTCAP, POINT_CAST, POINT_GATE };
// pointwise: grid (T, any), block 128
struct PointwiseArgs {
    View a, b, out;
    int32_t op, act;
    float factor;
    Rows rows;
};

// out[r] = in[row[r]]. gather_rows: grid R, block 128
struct GatherArgs {
    View in, out;
    const int32_t* row;
    Rows rows;
};

// ---- sampling ----

// di_sample with device addresses; the same fields in the same order.
struct Sample {
    uint64_t seed;
    const int32_t* history;
    const int32_t* bias_ids;
    const float* bias_values;
    const int32_t* banned_ids;
    const uint32_t* mask;
    int32_t history_len, prompt_len;
    int32_t n_bias, n_banned;
    uint32_t sample_index, position;
    float temperature, top_p, min_p;
    float repetition_penalty, presence_penalty, frequency_penalty;
    int32_t top_k, no_repeat_ngram, n_top, target, slot;
    uint32_t flags;
};
// sample: grid R, block 64·n
struct SampleArgs {
    View logits;  // [R, padded V] F32
    int32_t V;
    const Sample* samples;  // [R]
    float* row_work;        // [R][work_stride] edited logits
    uint32_t* counts;       // [R][work_stride] zeros before and after
    int64_t work_stride;    // at least V
    int32_t* last_token;    // [slots]
    int32_t *out_token, *out_status;
    float* out_logprob;
    int32_t* out_rank;
    int32_t* out_top_ids;  // [R][max_top]
    float* out_top_logprobs;
    int32_t max_top;  // at most 256
    Rows rows;
};

}  // namespace di
