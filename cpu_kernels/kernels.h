// The kernel table: everything a tier provides. A tier's table starts as its parent's and overrides entries.
//
// A kernel does the slice it is told to do. It never threads, allocates or calls the system; scratch comes from the
// caller. All tiers give the same bits; docs/arithmetic.md is the specification.
#pragma once
#include "layout.h"

namespace di {

enum class Act : int { None = 0, Silu = 1, GeluTanh = 2, GeluErf = 3 };  // di_act without the MUL bit

// y[M,N] = act(x[M,K] · w[N,K]ᵀ + bias[N]) + residual[M,N]; with `gated`, panels hold 16 gate and 16 up columns and
// y[M,N/2] = act(gate) * up. x is fp32 for fp32 and fp16 weights, bf16 for bf16 weights. y is fp32 or bf16.
struct Gemm {
    View x;
    const void* w;
    View y;
    const float* bias;      // padded to N, or null
    const float* residual;  // null, or the data of an fp32 activation with y's rows, cells and first (may be y itself)
    View residual_view;
    int32_t k_cells;
    Act act;
    bool gated;
    float* scratch;  // Gemm::scratch_floats() floats of this thread
    static constexpr size_t scratch_floats() { return size_t{1} << 19; }  // 2 MiB
};

// Where a quantized weight lies; see layout.h. Groups are K elements [group * g, group * (g + 1)), each padded to whole
// cells of 64.
struct QuantWeight {
    uint8_t* codes;
    void* scales;    // [N/32][groups][32]
    int16_t* zeros;  // [N/32][groups][32]
    DType bits;      // U8 or U4
    DType scale_dtype;
    int32_t k;      // elements that count
    int32_t group;  // K elements a scale covers
    int32_t groups;
    int32_t cells;  // of 64 k, over all groups
    int group_cells() const { return (group + kQuantCell - 1) / kQuantCell; }
};

// The same product with a quantized weight: exact integer sums a group, one rounding, groups added in ascending order.
struct GemmQ {
    Planes x;
    View grid;  // fp32 [M, 2 * groups]: scales, then sums of the integers (int32 bits)
    QuantWeight w;
    View y;
    const float* bias;
    const float* residual;
    View residual_view;
    Act act;
    bool gated;
    float* scratch;  // Gemm::scratch_floats() floats of this thread
};

struct Quantize {
    View x;  // fp32 or bf16
    Planes y;
    View grid;
    const int32_t* order;  // element i of K is column order[i] of the input, or null
    int32_t k, group;
    int32_t head, padded_head;  // the input's columns come in heads of `head`, padded; 0: no heads, or an order
};

struct Norm {
    View x, y;            // x fp32; y fp32 or bf16
    const float* weight;  // padded with zeros
    const float* bias;    // layer norm only, or null
    int32_t cols;         // columns that count
    float eps;
};

struct Embed {
    View y;             // fp32
    const void* table;  // row-major [rows][row_stride], or the panels of a linear weight
    DType dtype;
    bool panels;
    int32_t k_cells;  // panels: cells over K;  row-major: row stride in cells
    float scale;
};

// Per-head norm, rotation and the store into the KV cache. Heads are padded to a multiple of 32 columns.
struct Rope {
    View q, k, v;         // fp32, rotated in place; q or k may have data == null
    View table;           // fp32 [T, 2h]: cos | sin, or data == null: no rotation
    const float* q_norm;  // [D] padded, or null
    const float* k_norm;
    float eps;
    int32_t q_heads, kv_heads, head_size, padded_head, rotary;  // rotary = 2h
    bool interleaved;
};

struct KvWrite {
    KvLayout kv;
    int32_t layer;
    const int32_t* block_of;   // [T] block id of each token of the step
    const int32_t* offset_of;  // [T] its index in that block
};

constexpr int kMaxExperts = 1024;

// The experts of each token and their weights: y[T,2k] = k ids in ascending order as int32, then k weights.
struct Route {
    View logits, y;  // fp32 [T,E], fp32 [T,2k]
    int32_t experts, chosen;
    bool renormalize;  // the weights of a token add up to 1, before `scale`
    float scale;
};

// One attention task: query rows [row0, row1) of one sequence and KV head over one split of the cache. Row r of a
// sequence is (token r / group, head r % group); group = q_heads / kv_heads.
struct Attention {
    View q, y;  // q fp32; y fp32 or bf16
    KvLayout kv;
    const float* alibi;  // [Hq] slopes or null
    const float* sinks;  // [Hq] or null
    float scale, softcap;
    int32_t layer, q_heads, kv_heads, head_size, padded_head, window;
};

struct AttentionTask {
    const int32_t* blocks;  // the sequence's block table
    int32_t token0;         // first row of the sequence in the step
    int32_t kv_base;        // cache index of that first token
    int32_t kv_len;
    int32_t bidirectional;
    int32_t kv_head;
    int32_t row0, row1;      // at most kMaxTileRows rows
    int32_t split0, split1;  // splits of kSplit cache positions
    float* partial;  // null: all splits, y is written; else where the partial of split0 goes (split1 = split0 + 1)
};

constexpr int kSoftmaxStep = 256;  // cache positions a softmax step, aligned to absolute positions
constexpr int kSplit = 1024;       // cache positions a split, likewise
// A partial: O[32][padded head], then m[32], then l[32].
constexpr size_t partial_floats(int padded_head) { return static_cast<size_t>(kMaxTileRows) * (padded_head + 2); }
constexpr size_t attention_scratch_floats() { return 32 * (2 * kSoftmaxStep + 4 * kMaxHead + 64); }

constexpr int kLogitBlock = 64;

struct KernelTable {
    const char* name;

    // Rows [m0, m1) and panels [p0, p1). m0 is a multiple of 32.
    void (*gemm_f32)(const Gemm&, int m0, int m1, int p0, int p1);
    void (*gemm_f16)(const Gemm&, int m0, int m1, int p0, int p1);
    void (*gemm_bf16)(const Gemm&, int m0, int m1, int p0, int p1);

    void (*gemm_quant)(const GemmQ&, int m0, int m1, int p0, int p1);
    void (*quantize)(const Quantize&, int m0, int m1);
    // One row of a weight by the InstantQuant formula: codes one a byte, and a scale (already rounded to the weight's
    // type) and zero a group. False where an element is not finite.
    bool (*instant_quant)(const void* row, DType type, const QuantWeight&, uint8_t* codes, float* scales,
                          int16_t* zeros);
    // Packs panels [p0, p1) from rows of codes, scales and zeros, indexed by absolute n; null: a row of zeros.
    void (*pack_codes)(const QuantWeight&, const uint8_t* const* codes, const float* const* scales,
                       const int16_t* const* zeros, int p0, int p1);
    // Row `token` of a quantized linear weight as fp32, times scale, into row m.
    void (*embed_quant)(const View& y, const QuantWeight&, float scale, int token, int m);

    // Packs panels from source rows: rows[n] points at k source elements (null: zeros) for n in [32 * p0, 32 * p1);
    // each group of k_group elements is padded to k_group_padded. dst is the start of the whole weight. src/dst: any
    // pair that loses nothing or rounds to nearest even.
    void (*pack)(void* dst, DType dst_type, const void* const* rows, DType src_type, int k, int k_group,
                 int k_group_padded, int p0, int p1);
    void (*convert)(void* dst, DType dst_type, const void* src, DType src_type, size_t n);

    void (*rms_norm)(const Norm&, int m0, int m1);
    void (*layer_norm)(const Norm&, int m0, int m1);
    void (*embed)(const Embed&, int token, int m);
    void (*rope)(const Rope&, int m0, int m1);
    void (*kv_write)(const KvWrite&, const View& k, const View& v, int m0, int m1);

    // Elementwise over rows [m0, m1): y = op(a, b). Types: fp32 or bf16 each.
    void (*act)(const View& y, const View& a, Act act, int m0, int m1);
    void (*mul)(const View& y, const View& a, const View& b, int m0, int m1);
    void (*add)(const View& y, const View& a, const View& b, int m0, int m1);
    void (*scale)(const View& y, const View& a, float s, int m0, int m1);
    void (*softcap)(const View& y, const View& a, float cap, int m0, int m1);
    void (*cast)(const View& y, const View& a, int m0, int m1);

    void (*route)(const Route&, int m0, int m1);
    // y[rows[i], .] = fma(weights[i], x[i, .], y[rows[i], .]) for i in [0, n), ascending; all fp32, the columns of x.
    void (*add_weighted)(const View& y, const View& x, const int32_t* rows, const float* weights, int n);
    // y = x * sigmoid(gate[., 0]); gate is fp32
    void (*gate_rows)(const View& y, const View& x, const View& gate, int m0, int m1);

    void (*attention_f32)(const Attention&, const AttentionTask&, float* scratch);
    void (*attention_bf16)(const Attention&, const AttentionTask&, float* scratch);
    void (*attention_u8)(const Attention&, const AttentionTask&, float* scratch);
    void (*attention_u4)(const Attention&, const AttentionTask&, float* scratch);
    // Merges the partials of `splits` splits in ascending order and writes y.
    void (*attention_merge)(const Attention&, const AttentionTask&, const float* partials, int splits);

    // Sampling. The largest of each block of kLogitBlock columns, NaN if any is NaN, of rows [m, m + n); those of the
    // first row from `maxima` on, those of the next one `stride` further.
    void (*block_maxima)(const View& x, int m, int n, int cols, float* maxima, size_t stride);
    // Over a contiguous row:
    float (*max)(const float* x, int n);                  // NaN if any NaN
    double (*sum_exp)(const float* x, int n, float max);  // sum of exp(x - max)
    void (*exp_shifted)(float* y, const float* x, int n, float max,
                        float inv_temperature);  // exp((x - max) * inv_temperature)

    // Touches every byte once; the benchmark's read loop.
    int64_t (*read_sum)(const void* p, size_t bytes);
    // Products of bf16 in registers alone; returns the operations done in `rounds`. Null where no instruction has
    // more than one of them a lane.
    double (*matrix_peak)(int64_t rounds);
    // Leaves the thread's matrix state clean at the end of a program. Null where there is none.
    void (*release)();
};

const KernelTable* scalar_table();
const KernelTable* avx2_table();
const KernelTable* avxvnni_table();
const KernelTable* avx512_table();
const KernelTable* avx512vnni_table();
const KernelTable* avx512bf16_table();
const KernelTable* amx_table();

}  // namespace di
