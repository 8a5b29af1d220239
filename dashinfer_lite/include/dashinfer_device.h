/* The C ABI that every DashInfer Lite device implements.
 *
 * A device receives a whole program once (flat instructions over slots) and then one small `di_step` per engine step.
 * It owns its weight layout and its KV layout; the engine knows block ids only. The struct `di_device_api` is handed over in a
 * PyCapsule named DI_CAPSULE_NAME. All structs are append-only: a reader checks `abi_version` and `struct_size`.
 *
 * Dimension letters: T tokens of a step, B sequences of a step, R logit rows of a step, N columns out, K columns in,
 * Hq query heads, Hkv key/value heads, D head size, E experts, k experts of a token.
 *
 * Every function returns 0 or a negative DI_E… code; where a `why` buffer is given it holds one readable sentence after a failure.
 * No function throws, prints, forks, or changes the caller's floating-point mode. */
#ifndef DASHINFER_DEVICE_H
#define DASHINFER_DEVICE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define DI_ABI_VERSION 1u
#define DI_CAPSULE_NAME "dashinfer_lite.device.v1"

enum { DI_OK = 0, DI_EINVAL = -1, DI_ENOMEM = -2, DI_EUNSUPPORTED = -3, DI_EDEAD = -4, DI_EINTERNAL = -5 };

typedef enum { DI_F32 = 0, DI_F16 = 1, DI_BF16 = 2, DI_I32 = 3, DI_I8 = 4, DI_U8 = 5, DI_U4 = 6 } di_dtype;

/* ---------------------------------------------------------------------------------------------------------- program -- */

typedef enum {
    DI_OP_EMBED = 1,       /* out0[T,H]  = table[token] * f0, or the external hidden state of the row.      w0 table or linear */
    DI_OP_ROPE_TABLE = 2,  /* out0[T,2h] = cos | sin of position * inv_freq, times f0.  w0 inv_freq[h], w1 long inv_freq or -1.
                              i0 kind (di_rope_kind), i1 h, i2 original context, i3..i5 sections of 1 to 3 position rows (0,0,0: one row),
                              i6 sections interleaved, i7 logn (0: none): from that position on rows are also multiplied
                              by log(position + 1) / log(logn); f0 attention factor, f1 scaling factor, f2 theta */
    DI_OP_RMS_NORM = 3,    /* out0 = in0 / sqrt(mean(in0^2) + f0) * w0.  i0 columns that count (padding does not) */
    DI_OP_LAYER_NORM = 4,  /* out0 = (in0 - mean) / sqrt(var + f0) * w0 + w1.  i0 as above */
    DI_OP_LINEAR = 5,      /* out0[.,N] = act(in0[.,K] . w0[N,K]^T + w1[N]) + in1.  i0 activation (di_act); a *_MUL activation reads
                              w0 as interleaved groups of 16 gate rows and 16 up rows and writes N/2 columns.  With a quantized w0,
                              in0 are planes and in2 their scales and sums (see DI_OP_QUANTIZE) */
    DI_OP_HEAD_NORM = 6,   /* RMS norm of each head: i0 heads, i1 D, w0[D], f0 eps */
    DI_OP_ROPE = 7,        /* rotate each head: in1 table, i0 heads, i1 D, i2 rotary dims, i3 style (di_rope_style) */
    DI_OP_KV_WRITE = 8,    /* store in0 = k, in1 = v of the step's tokens.  i0 layer, i1 Hkv, i2 D */
    DI_OP_ROPE_KV = 9,     /* in0 q, in1 k, in2 v, in3 table: optional head norms (w0 q, w1 k, f0 eps), rope on q and k, KV write; out0 = q.
                              i0 layer, i1 Hq, i2 Hkv, i3 D, i4 rotary dims, i5 style */
    DI_OP_ATTENTION = 10,  /* out0[T,Hq*D] = softmax(mask(cap(f0 * q.k^T))) . v over the sequence's blocks.
                              i0 layer, i1 Hq, i2 Hkv, i3 D, i4 window (0: none); w0 ALiBi slopes[Hq] or -1, w1 sinks[Hq] or -1;
                              f0 scale, f1 soft cap (0: none) */
    DI_OP_ACT = 11,        /* out0 = act(in0), i0 di_act without _MUL */
    DI_OP_MUL = 12,        /* out0 = in0 * in1 */
    DI_OP_ADD = 13,        /* out0 = in0 + in1 */
    DI_OP_SCALE = 14,      /* out0 = in0 * f0 */
    DI_OP_SOFTCAP = 15,    /* out0 = f0 * tanh(in0 / f0) */
    DI_OP_CAST = 16,       /* out0 = in0 in another dtype */
    DI_OP_GATHER_ROWS = 17,/* out0[R,.] = in0[logit_row[R],.] */
    DI_OP_SAMPLE = 18,     /* in0 logits[R,V]: fills the step's results.  i0 V */
    DI_OP_QUANTIZE = 19,   /* in0[.,K] fp32 or bf16 → out0 int8 planes, out1 fp32 [., 2G]: scale of each group, then the sum of its
                              integers (int32 bits).  w0 order: the column of in0 of each element of K (int32 bits, none twice), or -1;
                              i0 K, i1 group (K elements a scale covers), i2 planes (2: 16-bit activations, 1: 8-bit), i3 head size in the
                              input (0: no heads, or an order, which knows of the padding), i4 padded head size of the input */
    DI_OP_ROUTE = 20,      /* in0 logits[T,E] fp32 → out0[T,2k] fp32: the k experts of each token in ascending order (int32 bits), then
                              their weights. p = softmax(in0) over all E; the experts are those with the k largest logits, of equal ones
                              the lower; the weights are their p, divided by the sum of the k where i2, times f0.
                              i0 experts, i1 chosen, i2 renormalize; f0 scale */
    DI_OP_EXPERT_LINEAR = 21, /* out0[T*k,N] = act(in0[T,K] . w0_e[N,K]^T) with e the j-th expert of token t for row t*k + j.  in1 routing.
                              w0 is one linear weight [E*N,K], expert after expert, N a multiple of col_align; in2 as in2 of
                              DI_OP_LINEAR.  i0 experts, i1 activation (di_act), *_MUL included */
    DI_OP_EXPERT_SUM = 22, /* out0[T,N] = in2 + sum over j of weight[t,j] * (in0[T*k,K] . w0_e[N,K]^T)[t*k + j], j ascending, one fma
                              each.  in1 routing, in2 fp32 or -1 (may be out0), in3 as in2 of DI_OP_LINEAR.  i0 experts */
    DI_OP_GATE_ROWS = 23,  /* out0 = in0 * sigmoid(in1[.,0]) */
    DI_OP_HIDDEN = 24      /* in0[R,H] fp32 → the step's out_hidden, where it has one. i0 H.  A tile of logit rows that all ask for this
                              alone (DI_SAMPLE_HIDDEN) ends here */
} di_op;

typedef enum { DI_ACT_NONE = 0, DI_ACT_SILU = 1, DI_ACT_GELU_TANH = 2, DI_ACT_GELU_ERF = 3, DI_ACT_SILU_MUL = 17,
               DI_ACT_GELU_TANH_MUL = 18, DI_ACT_GELU_ERF_MUL = 19 } di_act;
#define DI_ACT_MUL_BIT 16
typedef enum { DI_ROPE_NEOX = 0, DI_ROPE_INTERLEAVED = 1 } di_rope_style;
/* DYNAMIC_NTK and LONG depend on n = max(prompt length, position + 1) of the token's sequence, PROMPT_NTK on the prompt's length alone. */
typedef enum { DI_ROPE_STATIC = 0, DI_ROPE_DYNAMIC_NTK = 1, DI_ROPE_LONG = 2, DI_ROPE_PROMPT_NTK = 3 } di_rope_kind;

#define DI_MAX_IN 6
#define DI_MAX_OUT 2
#define DI_MAX_WEIGHT 4
#define DI_MAX_INT 10
#define DI_MAX_FLOAT 4

typedef struct di_instr {
    uint16_t op;                    /* di_op */
    uint16_t flags;                 /* DI_INSTR_… */
    int16_t in[DI_MAX_IN];          /* slot ids, -1: none */
    int16_t out[DI_MAX_OUT];
    int32_t weight[DI_MAX_WEIGHT];  /* weight ids, -1: none */
    int32_t i[DI_MAX_INT];
    float f[DI_MAX_FLOAT];
} di_instr;                         /* 92 bytes */

#define DI_INSTR_SYNC 1u            /* later instructions depend on this one: all threads meet after it */

/* E: one row for each token and each of its experts, T * experts_per_token. Row t * k + j is token t at its j-th expert. */
typedef enum { DI_ROWS_T = 0, DI_ROWS_R = 1, DI_ROWS_E = 2 } di_rows;

/* An activation [rows, cols]. A view (parent >= 0) is the column range [first_col, first_col + cols) of its parent.
 * cols and first_col are padded to `di_info.col_align`; padded columns hold zeros. DI_I8 slots are quantized planes: cols counts
 * bytes a row, planes * padded K, and views of them do not exist. */
typedef struct di_slot {
    uint8_t dtype;
    uint8_t rows;       /* di_rows */
    int16_t parent;     /* slot id or -1 */
    int32_t cols;
    int32_t first_col;
    int32_t reserved;
    int64_t offset;     /* bytes from the arena's start (roots only), multiple of 64 */
} di_slot;

typedef enum { DI_WEIGHT_LINEAR = 0, DI_WEIGHT_TABLE = 1, DI_WEIGHT_VECTOR = 2 } di_weight_kind;

/* Rows arrive already in padded order (see weight_write). A linear weight's source row has `k` elements in groups of `k_group`;
 * the device pads each group with zeros to `k_group_padded`. */
typedef struct di_weight_desc {
    uint8_t kind;       /* di_weight_kind */
    uint8_t dtype;      /* as the device keeps it; vectors are DI_F32 */
    uint16_t reserved;
    int32_t n;          /* rows, padded; vectors: elements, padded */
    int32_t k;          /* source elements a row; vectors: 1 */
    int32_t k_group;
    int32_t k_group_padded;
    int32_t quant_group;    /* DI_U8, DI_U4: K elements that one scale covers (k: per channel); k_group is the same, k_group_padded the
                               next multiple of 64; the last group may be short. 0: not quantized */
    uint8_t scale_dtype;    /* DI_F32, DI_F16 or DI_BF16 */
    uint8_t reserved2[3];
} di_weight_desc;

typedef struct di_kv_desc {
    int32_t layers, heads, head_size, block_tokens, blocks;
    uint8_t dtype;      /* DI_BF16, DI_F32, DI_U8 or DI_U4; DI_F16 where a device has it */
    uint8_t reserved[3];
} di_kv_desc;

typedef struct di_program_desc {
    uint32_t struct_size;
    int32_t n_slots, n_weights, n_body, n_tail;   /* instructions: body first, then tail; the tail runs on tiles of `tail_rows` logit rows */
    const di_slot *slots;
    const di_instr *instrs;
    const di_weight_desc *weights;
    di_kv_desc kv;
    int64_t arena_bytes;
    int32_t max_tokens, tail_rows, max_seqs, max_logprobs;
    int32_t experts_per_token;      /* k; 0 where there are no experts. Descriptions without this field end before it */
    int32_t host_blocks;            /* KV blocks in host memory, for swaps; a device of unified memory refuses any */
} di_program_desc;

/* ------------------------------------------------------------------------------------------------------------- step -- */

#define DI_SAMPLE_RAW_LOGPROB 1u    /* report logprob, rank and the n_top best of the raw distribution */
#define DI_SAMPLE_HIDDEN 2u         /* the row's hidden state is wanted and no token: out_token and its companions mean nothing */

/* One logit row and how to pick its token. Addresses are host memory that stays valid until the ticket completes. */
typedef struct di_sample {
    uint64_t seed;
    uint64_t history;       /* const int32_t*: prompt then generated tokens; read by penalties and no_repeat_ngram only */
    uint64_t bias_ids;      /* const int32_t* */
    uint64_t bias_values;   /* const float* */
    uint64_t banned_ids;    /* const int32_t* */
    uint64_t mask;          /* const uint32_t*: one bit a token, 1 = allowed; 0: no mask */
    int32_t history_len, prompt_len;    /* history_len counts the prompt */
    int32_t n_bias, n_banned;
    uint32_t sample_index;  /* which of the request's n samples */
    uint32_t position;      /* index of the token being drawn, in the sequence */
    float temperature, top_p, min_p;
    float repetition_penalty, presence_penalty, frequency_penalty;
    int32_t top_k;          /* <= 0: all */
    int32_t no_repeat_ngram;/* 0: off */
    int32_t n_top;          /* alternatives to report */
    int32_t target;         /* >= 0: score this token instead of drawing one */
    int32_t slot;           /* sequence slot whose last token this row sets, -1: none */
    uint32_t flags;
} di_sample;

typedef struct di_step {
    uint32_t struct_size;
    int32_t T, B, R;
    int32_t position_rows;          /* 1 to 3 */
    int32_t position_stride;        /* entries from one row of positions to the next */
    int32_t max_blocks;             /* row length of block_table */
    const int32_t *tokens;          /* [T]; a negative value -1-s takes the last token that the device drew for sequence slot s */
    const int32_t *positions;       /* [position_rows][position_stride] */
    const int32_t *q_offset;        /* [B+1] rows of sequence b: [q_offset[b], q_offset[b+1]) */
    const int32_t *kv_len;          /* [B] tokens in the cache after this step */
    const int32_t *prompt_len;      /* [B] */
    const int32_t *bidirectional;   /* [B] the first so many tokens see each other; 0: causal */
    const int32_t *adapter;         /* [B] 0: none */
    const int32_t *block_table;     /* [B][max_blocks] */
    const int32_t *logit_row;       /* [R] row in T */
    const di_sample *sample;        /* [R] */
    int32_t n_clear;                /* blocks to fill with zeros before the step */
    const int32_t *clear_blocks;
    int32_t n_external;             /* rows whose hidden state is given instead of a token */
    const int32_t *external_row;    /* [n_external] ascending */
    const float *external;          /* [n_external][H] */
    int32_t *out_token;             /* [R] */
    int32_t *out_status;            /* [R] di_sample_status */
    float *out_logprob;             /* [R] of the token in the raw distribution */
    int32_t *out_rank;              /* [R] 1 = most likely */
    int32_t *out_top_ids;           /* [R][max_logprobs], -1 past n_top */
    float *out_top_logprobs;        /* [R][max_logprobs] */
    float *out_logits;              /* [R][V] or NULL */
    float *out_hidden;              /* [R][H] or NULL: what the head multiplies, the last norm's rows */
    int32_t n_swap_out;             /* first of all, blocks are copied to host blocks */
    const int32_t *swap_out;        /* [n_swap_out][2] block, host block */
    int32_t n_swap_in;              /* then others are filled from host blocks, and only then blocks are cleared */
    const int32_t *swap_in;         /* [n_swap_in][2] block, host block */
} di_step;

/* Swaps happen as if steps ran one after the other. No step in flight reads, writes or clears a block that a later one swaps, so
 * copies may run beside the steps before theirs, in the order of submission. Where a copy fails, its step fails. */

/* A row that is not OK still leaves some valid token as its slot's last one: the next step may be in flight already. */
typedef enum { DI_SAMPLE_OK = 0, DI_SAMPLE_NAN = 1, DI_SAMPLE_EMPTY = 2 } di_sample_status;

/* ----------------------------------------------------------------------------------------------------------- device -- */

typedef struct di_options {
    uint32_t struct_size;
    int32_t threads;        /* 0: the device decides */
    const char *isa;        /* NULL: best. The CPU's tier; on other devices which unit, as in "0" */
} di_options;

typedef struct di_info {
    uint32_t struct_size;
    int32_t threads;
    int32_t col_align;      /* slots' columns and weights' rows are padded to this */
    int32_t head_align;     /* head sizes are padded to this */
    int32_t async_depth;    /* steps that may be in flight at once; 1: submit returns a finished ticket */
    int32_t unified_memory; /* 1: kv blocks already live in host memory */
    int64_t memory_total, memory_free;
    char tier[32];          /* "amx" … */
    char detail[128];
} di_info;

typedef struct di_stats {
    uint32_t struct_size;
    int64_t weight_bytes, kv_bytes, arena_bytes;
    int64_t last_step_ns;
    int64_t op_ns[32];      /* by di_op, summed over steps while profiling is on */
} di_stats;

typedef struct di_device_api {
    uint32_t abi_version, struct_size;
    const char *name;
    int (*probe)(char *why, size_t why_bytes);
    int (*open)(const di_options *options, void **device, char *why, size_t why_bytes);
    void (*close)(void *device);
    int (*info)(void *device, di_info *info);

    /* Refuses, with a reason, what the device cannot run: at load, never at step ten thousand. */
    int (*program_create)(void *device, const di_program_desc *desc, void **program, char *why, size_t why_bytes);
    void (*program_free)(void *program);
    /* Rows [row0, row0 + rows) of a weight in padded order; row_data[i] points at `k` source elements or is NULL for a row of zeros.
     * row0 is a multiple of col_align. Vectors: one row of n elements. Different row ranges may be written by different threads. */
    int (*weight_write)(void *program, int32_t weight, int32_t row0, int32_t rows, const void *const *row_data, uint8_t src_dtype,
                        char *why, size_t why_bytes);
    /* The same for a quantized weight whose grid exists already: codes one a byte (`k` a row, NULL: a row of zeros), and for each row one scale
     * and one zero point a group. weight_write with a floating-point source quantizes by itself. */
    int (*weight_write_codes)(void *program, int32_t weight, int32_t row0, int32_t rows, const uint8_t *const *codes,
                              const float *const *scales, const int16_t *const *zeros, char *why, size_t why_bytes);
    int (*submit)(void *program, const di_step *step, uint64_t *ticket, char *why, size_t why_bytes);
    int (*wait)(void *program, uint64_t ticket, char *why, size_t why_bytes);

    int64_t (*kv_block_bytes)(void *program);
    int (*kv_move)(void *program, int to_host, int32_t n, const int32_t *blocks, void *const *host, uint64_t *ticket);
    int (*stats)(void *program, di_stats *stats);
    int (*profile)(void *program, int on);

    /* Test access: an activation as row-major fp32 [rows, cols]. With a program of one instruction this is the op-level interface. */
    int (*slot_write)(void *program, int32_t slot, int32_t rows, const float *data);
    int (*slot_read)(void *program, int32_t slot, int32_t rows, float *data);
} di_device_api;

#ifdef __cplusplus
}
#endif
#endif
