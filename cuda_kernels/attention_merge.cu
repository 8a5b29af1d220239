// Merges the partial results of query rows, in ascending order of cache positions, and divides.
#include "attention.cuh"

// grid (merges, Hkv), block 128
extern "C" __global__ void __launch_bounds__(128) attention_merge(di::AttentionArgs a) {
    using namespace di;
    if (static_cast<int>(blockIdx.x) >= count(a.merges)) return;
    const AttentionMerge merge = a.merge[blockIdx.x];
    const Query query(a, merge.sequence);
    const int kv_head = blockIdx.y, size = a.kv.head_size;
    for (int i = threadIdx.x; i < merge.rows * size; i += blockDim.x) {
        const int r = i / size, c = i % size, row = merge.row0 + r, head = query.head(row, kv_head);
        float m = a.sinks ? a.sinks[head] : minus_infinity(), l = a.sinks ? 1.0f : 0.0f, o = 0;
        for (int part = merge.part; part < merge.part + merge.parts; ++part) {
            const int64_t from = part_row(a, part, kv_head, r);
            const float part_m = a.part_max[2 * from], part_l = a.part_max[2 * from + 1];
            const float top = fmaxf(m, part_m), mine = exp_below(m, top), theirs = exp_below(part_m, top);
            m = top;
            l = fmaf(l, mine, part_l * theirs);
            o = fmaf(o, mine, a.part_sum[from * size + c] * theirs);
        }
        store1(a.out, query.token_row(row), head * size + c, l == 0.0f ? 0.0f : o / l + 0.0f);
    }
}
EXPORT_KERNEL(attention_merge)
