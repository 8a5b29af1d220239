// How each kernel is launched for its bucket of rows: its name, grid, block and dynamic shared memory. Plain C++, for the host
// library alone; who writes a kernel writes its function here.
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

constexpr int32_t kAttentionSplit = 256;  // cache positions of a partial result, aligned to absolute positions

// Query rows of one piece of work: few where the sequences of a step bring one token each.
inline int32_t attention_tile_rows(int32_t dtype, int32_t group, bool decodes, const Chip& chip);
inline Launch launch_attention(const AttentionArgs& a, const Chip& chip);
inline Launch launch_attention_merge(const AttentionArgs& a);

// ---- products ----

inline Launch launch_linear(const LinearArgs& a, const Chip&) {
    return {"linear_fma", divide_up(a.N, 64), divide_up(a.rows.most, 64), 256, 0};
}
inline Launch launch_linear_codes(const LinearCodesArgs& a, const Chip& chip);

// ---- sampling ----

inline Launch launch_sample(const SampleArgs& a) { return {"sample", a.rows.most, 1, 512, 0}; }

}  // namespace di
