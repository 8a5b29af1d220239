#include "plan_attention.h"

#include <algorithm>

namespace di {

namespace {

constexpr int kBlocksPerProcessor = 2;  // fewer leave the chip idle

int splits_of(const AttentionWork& work) { return divide_up(work.kv1 - work.kv0, kAttentionSplit); }

}  // namespace

void AttentionPlan::build(const di_step& step, int tile_rows, const Chip& chip, int most_parts) {
    work_.clear();
    merges_.clear();
    int splits = 0;
    for (int b = 0; b < step.B; ++b) {
        const int tokens = step.q_offset[b + 1] - step.q_offset[b], before = step.kv_len[b] - tokens;
        const int rows = tokens * shape_.group;
        for (int row = 0; row < rows; row += tile_rows) {
            const int count = std::min(tile_rows, rows - row);
            const int first = before + row / shape_.group, last = before + (row + count - 1) / shape_.group;
            const int bidirectional = step.bidirectional[b];
            const int end =
                first < bidirectional ? std::max(last + 1, std::min(bidirectional, step.kv_len[b])) : last + 1;
            int begin = shape_.window ? std::max(0, first - shape_.window + 1) : 0;
            begin -= begin % kAttentionSplit;
            work_.push_back({b, row, count, begin, end, -1});
            splits += splits_of(work_.back());
        }
    }
    const auto whole = static_cast<int>(work_.size());
    if (splits == whole || splits > most_parts || whole * shape_.heads >= kBlocksPerProcessor * chip.processors) return;
    std::vector<AttentionWork> pieces;
    int part = 0;
    for (const AttentionWork& work : work_) {
        const int count = splits_of(work);
        if (count == 1) {
            pieces.push_back(work);
            continue;
        }
        merges_.push_back({work.sequence, work.row0, work.rows, part, count});
        for (int at = work.kv0; at < work.kv1; at += kAttentionSplit)
            pieces.push_back(
                {work.sequence, work.row0, work.rows, at, std::min(work.kv1, at + kAttentionSplit), part++});
    }
    work_.swap(pieces);
}

}  // namespace di
