// How each kernel is launched for its bucket of rows: its name, grid, block and dynamic shared memory. Plain C++, for
// the host library alone; who writes a kernel writes its function here.
#pragma once
#include "args.h"

namespace di {

// The GPU that the library runs on.
struct Chip {
    int32_t arch;          // 70, 75, 80 …
    int32_t processors;    // streaming multiprocessors
    int32_t shared_bytes;  // the most a block may ask for
};

struct Launch {
    const char* kernel;
    int32_t grid_x, grid_y;
    int32_t block;
    int32_t shared;  // dynamic, in bytes
};

inline int32_t divide_up(int32_t a, int32_t b) { return (a + b - 1) / b; }

// ---- rows ----

inline Launch launch_embed(const EmbedArgs& a) { return {"embed", a.rows.most, 1, 128, 0}; }
inline Launch launch_embed_codes(const EmbedCodesArgs& a) { return {"embed_codes", a.e.rows.most, 1, 128, 0}; }
inline Launch launch_rope_table(const RopeTableArgs& a) { return {"rope_table", a.rows.most, 1, 64, 0}; }
inline Launch launch_norm(const NormArgs& a, bool layer) {
    return {layer ? "layer_norm" : "rms_norm", a.rows.most, 1, a.n > 2048 ? 512 : 128, 0};
}
inline Launch launch_pointwise(const PointwiseArgs& a) {
    return {"pointwise", a.rows.most, divide_up(a.out.cols, 2048), 128, 0};
}
inline Launch launch_gather_rows(const GatherArgs& a) { return {"gather_rows", a.rows.most, 1, 128, 0}; }
inline Launch launch_quantize(const QuantizeArgs& a) {
    return {"quantize", a.rows.most, divide_up(a.K, a.group), a.group > 1024 ? 256 : a.group > 128 ? 128 : 32, 0};
}

// ---- heads and the KV cache ----

inline Launch launch_heads(const HeadsArgs& a) {
    const int32_t heads = (a.q.data ? a.Hq : 0) + (a.k.data ? 2 * a.Hkv : 0);
    return {"rope_kv", a.rows.most, heads, 32, 0};
}
inline Launch launch_kv_clear(const KvClearArgs& a) { return {"kv_clear", a.count.most, 8, 256, 0}; }

// ---- attention ----

constexpr int32_t kAttentionRows = 16;  // query rows of a piece of work: decode, and what has no tensor cores
constexpr int32_t kPrefillRows = 64;    // and prefill on tensor cores

// Dynamic shared memory of the kernels on tensor cores, by head size and rows.
inline int32_t attention_mma_shared(int32_t head, int32_t rows, const Chip& chip) {
    const int32_t width = head <= 64 ? 64 : head <= 128 ? 128 : 256;
    const int32_t tokens = rows == kAttentionRows || width < 256 ? 64 : chip.arch < 80 ? 16 : 32;
    const int32_t tiles = (rows + 2 * tokens) * (width + 8) * 2 + 2 * tokens * 4;
    const int32_t sums = rows == kAttentionRows ? 4 * 16 * (width + 4) * 4 : 0;
    return tiles > sums ? tiles : sums;
}

// Volta's and Turing's tensor cores know fp16, but no bf16.
inline bool has_mma(int32_t dtype, const Chip& chip) {
    return dtype == F16 ? chip.arch >= 70 : dtype == BF16 && chip.arch >= 80;
}

inline bool attention_has_mma(const KvPool& kv, int32_t rows, const Chip& chip) {
    return kv.dtype != F32 && has_mma(F16, chip) && attention_mma_shared(kv.head_size, rows, chip) <= chip.shared_bytes;
}

// Query rows of a piece of work (AttentionArgs::tile_rows): many where a sequence of the step may bring many tokens.
inline int32_t attention_rows(const KvPool& kv, bool decodes, const Chip& chip) {
    return !decodes && attention_has_mma(kv, kPrefillRows, chip) ? kPrefillRows : kAttentionRows;
}

inline Launch launch_attention(const AttentionArgs& a, const Chip& chip) {
    const int32_t head = a.kv.head_size, rows = a.tile_rows, tokens = 32;
    const int32_t width = head <= 64 ? 0 : head <= 128 ? 1 : 2;
    if (attention_has_mma(a.kv, rows, chip)) {
        static const char* const names[2][2][3] = {
            {{"attention_decode_64_f16", "attention_decode_128_f16", "attention_decode_256_f16"},
             {"attention_decode_64_bf16", "attention_decode_128_bf16", "attention_decode_256_bf16"}},
            {{"attention_prefill_64_f16", "attention_prefill_128_f16", "attention_prefill_256_f16"},
             {"attention_prefill_64_bf16", "attention_prefill_128_bf16", "attention_prefill_256_bf16"}}};
        const bool wide = a.kv.dtype != F16 && has_mma(BF16, chip);
        const int32_t shared = attention_mma_shared(head, rows, chip);
        return {names[rows == kPrefillRows][wide][width], a.works.most, a.Hkv, 128, shared};
    }
    static const char* const names[3] = {"attention_fma_64", "attention_fma_128", "attention_fma_256"};
    const int32_t floats = (rows + tokens) * (head + 1) + rows * (tokens + 1) + 2 * tokens;
    return {names[width], a.works.most, a.Hkv, 128, 4 * floats};
}
inline Launch launch_attention_merge(const AttentionArgs& a) {
    return {"attention_merge", a.merges.most, a.Hkv, 128, 0};
}

// ---- products ----

// Blocks along the rows of a product whose tiles have `tile` of them; with experts there may be a tile more for each.
inline int32_t row_blocks(const Experts& e, const Rows& rows, int32_t tile) {
    if (!e.chosen) return divide_up(rows.most, tile);
    const int32_t all = rows.most * e.chosen, most = e.experts + all / tile;
    return !e.list || all < most ? all : most;
}

// Rows of the tiles that `expert_group` makes for a product; 0: too few rows to sort, a block takes one (Experts::list
// null).
inline int32_t expert_tile_rows(int32_t rows, int32_t n_planes) { return rows <= 16 ? 0 : n_planes == 2 ? 32 : 64; }

inline Launch launch_linear(const LinearArgs& a, const Chip& chip) {
    const bool single = a.experts.chosen != 0 && !a.experts.list, few = a.experts.chosen ? single : a.rows.most <= 16;
    const bool split = a.w_dtype == F16 && a.x.dtype == F32;
    const bool mma = (split || a.x.dtype == a.w_dtype) && has_mma(a.w_dtype, chip);
    const int32_t half = a.w_dtype == BF16;
    if (mma && few) {
        const char* const names[2] = {"linear_skinny_f16", "linear_skinny_bf16"};
        return {split ? "linear_skinny_f16_f32" : names[half], a.N / 16, row_blocks(a.experts, a.rows, 16), 256, 0};
    }
    if (few) {
        const char* const names[3][2] = {{"linear_gemv1_f32", "linear_gemv8_f32"},
                                         {"linear_gemv1_f16", "linear_gemv8_f16"},
                                         {"linear_gemv1_bf16", "linear_gemv8_bf16"}};
        const bool one = single || a.rows.most == 1;
        return {names[a.w_dtype][!one], divide_up(a.N, 8), row_blocks(a.experts, a.rows, one ? 1 : 8), 128, 0};
    }
    if (mma && split)
        return {"linear_mma64_f16_f32", divide_up(a.N, 64), row_blocks(a.experts, a.rows, 64), 128,
                3 * (2 * 64 + 64) * 80};
    if (mma) {
        const char* const names[2][2] = {{"linear_mma64_f16", "linear_mma128_f16"},
                                         {"linear_mma64_bf16", "linear_mma128_bf16"}};
        const int32_t large_shared = 128 * 132 * 4;
        const bool large = !a.experts.chosen && a.rows.most >= 512 && large_shared <= chip.shared_bytes;
        const int32_t tile = large ? 128 : 64;
        return {names[half][large], divide_up(a.N, tile), row_blocks(a.experts, a.rows, tile), large ? 256 : 128,
                large ? large_shared : 3 * 128 * 80};
    }
    return {"linear_fma", divide_up(a.N, 64), row_blocks(a.experts, a.rows, 64), 256, 0};
}

inline Launch launch_linear_halves(const LinearHalvesArgs& a) { return {"linear_halves", a.count, 1, 128, 0}; }
inline Launch launch_linear_finish(const LinearFinishArgs& a) { return {"linear_finish", a.count, 1, 128, 0}; }

inline Launch launch_linear_codes(const LinearCodesArgs& a, const Chip&) {
    const bool gated = (a.e.act & 16) != 0, two = a.n_planes == 2, four = a.w.bits == 4;
    const bool few = a.experts.chosen ? !a.experts.list : a.rows.most <= 16;
    const int32_t N = a.experts.chosen ? a.experts.N : a.w.N;
    if (few) {
        const char* const names[2][2] = {{"linear_w8_few1", "linear_w8_few2"}, {"linear_w4_few1", "linear_w4_few2"}};
        return {names[four][two], N / (gated ? 32 : 16), row_blocks(a.experts, a.rows, two ? 8 : 16), 256, 0};
    }
    const char* const names[2][2] = {{"linear_w8_many1", "linear_w8_many2"}, {"linear_w4_many1", "linear_w4_many2"}};
    return {names[four][two], divide_up(N, 64), row_blocks(a.experts, a.rows, two ? 32 : 64), 128, 0};
}

// ---- mixtures of experts ----

inline Launch launch_route(const RouteArgs& a) { return {"route", a.rows.most, 1, 32, 0}; }
inline Launch launch_expert_group(const GroupArgs& a) {
    return {"expert_group", 1, 1, a.rows.most > 64 ? 1024 : 128, 0};
}
inline Launch launch_expert_sum(const ExpertSumArgs& a) { return {"expert_sum", a.rows.most, 1, 128, 0}; }

// ---- sampling ----

inline Launch launch_sample(const SampleArgs& a) { return {"sample", a.rows.most, 1, 512, 0}; }

}  // namespace di
