#include "attention_plan.h"

#include <algorithm>

namespace di {

namespace {

int64_t cost(const AttentionTask& task) {
    const int64_t rows = (task.row1 - task.row0 + 15) / 16 * 16;
    return rows * (std::min(task.split1 * kSplit, task.kv_len) - task.split0 * kSplit) + 512;
}

}  // namespace

void AttentionPlan::build(const di_step& step, int threads) {
    tasks_.clear();
    merges_.clear();
    const int group = shape_.q_heads / shape_.kv_heads;
    int64_t tiles = 0;
    for (int b = 0; b < step.B; ++b) {
        const int64_t rows = static_cast<int64_t>(step.q_offset[b + 1] - step.q_offset[b]) * group;
        tiles += (rows + kMaxTileRows - 1) / kMaxTileRows * shape_.kv_heads;
    }
    // Splitting a tile's cache range over threads pays where tiles alone cannot keep all threads busy. The bits are the
    // same.
    const bool split = tiles < 4 * threads;
    size_t partials = 0;
    for (int b = 0; b < step.B; ++b) {
        const int tokens = step.q_offset[b + 1] - step.q_offset[b];
        AttentionTask task{};
        task.blocks = step.block_table + static_cast<size_t>(b) * step.max_blocks;
        task.token0 = step.q_offset[b];
        task.kv_len = step.kv_len[b];
        task.kv_base = task.kv_len - tokens;
        task.bidirectional = step.bidirectional ? step.bidirectional[b] : 0;
        for (int row = 0; row < tokens * group; row += kMaxTileRows) {
            task.row0 = row;
            task.row1 = std::min(row + kMaxTileRows, tokens * group);
            const int first = task.kv_base + task.row0 / group, last = task.kv_base + (task.row1 - 1) / group;
            int end = last + 1;
            if (first < task.bidirectional) end = std::max(end, std::min(task.bidirectional, task.kv_len));
            const int begin = shape_.window > 0 ? std::max(0, first - shape_.window + 1) : 0;
            const int split0 = begin / kSplit, split1 = (end + kSplit - 1) / kSplit;
            for (int head = 0; head < shape_.kv_heads; ++head) {
                task.kv_head = head;
                task.split0 = split0;
                task.split1 = split1;
                if (!split || split1 - split0 == 1) {
                    tasks_.push_back(task);
                    continue;
                }
                merges_.push_back({task, partials});
                partials += static_cast<size_t>(split1 - split0);
            }
        }
    }
    if (partials_.size() < partials * partial_floats(shape_.padded_head))
        partials_.resize(partials * partial_floats(shape_.padded_head));
    for (const MergeTask& merge : merges_) {
        for (int s = merge.task.split0; s < merge.task.split1; ++s) {
            AttentionTask task = merge.task;
            task.split0 = s;
            task.split1 = s + 1;
            task.partial = partial(merge.partial + static_cast<size_t>(s - merge.task.split0));
            tasks_.push_back(task);
        }
    }
    if (tasks_.size() > 1) {
        std::stable_sort(tasks_.begin(), tasks_.end(),
                         [](const AttentionTask& a, const AttentionTask& b) { return cost(a) > cost(b); });
    }
}

}  // namespace di
