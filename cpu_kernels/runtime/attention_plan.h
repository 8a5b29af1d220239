// The attention work of one step, cut into tasks once and used by every layer of the same shape.
#pragma once

#include <cstdint>
#include <vector>

#include "../../dashinfer_lite/include/dashinfer_device.h"
#include "../kernels.h"

namespace di {

// A query tile whose splits are computed apart and merged afterwards, in ascending order.
struct MergeTask {
    AttentionTask task;  // split0 .. split1 is the whole range
    size_t partial;      // index of its first partial
};

struct AttentionShape {
    int32_t q_heads, kv_heads, padded_head, window;
    bool operator==(const AttentionShape& o) const {
        return q_heads == o.q_heads && kv_heads == o.kv_heads && padded_head == o.padded_head && window == o.window;
    }
};

class AttentionPlan {
  public:
    explicit AttentionPlan(const AttentionShape& shape) : shape_(shape) {}

    const AttentionShape& shape() const { return shape_; }
    void build(const di_step& step, int threads);

    // Costly tasks first, so that threads that take one after another end together.
    const std::vector<AttentionTask>& tasks() const { return tasks_; }
    const std::vector<MergeTask>& merges() const { return merges_; }
    float* partial(size_t index) { return partials_.data() + index * partial_floats(shape_.padded_head); }

  private:
    AttentionShape shape_;
    std::vector<AttentionTask> tasks_;
    std::vector<MergeTask> merges_;
    std::vector<float> partials_;
};

}  // namespace di
