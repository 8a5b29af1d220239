// Which query rows meet which cache positions: a step's attention as pieces of work for the GPU's blocks.
#pragma once
#include <vector>

#include "launch.h"
#include "dashinfer_device.h"

namespace di {

// Layers of one shape share a plan.
struct AttentionShape {
    int group;  // query heads of a KV head
    int heads;  // KV heads
    int window;

    bool operator==(const AttentionShape& other) const {
        return group == other.group && heads == other.heads && window == other.window;
    }
};

class AttentionPlan {
  public:
    explicit AttentionPlan(AttentionShape shape) : shape_(shape) {}

    // Plans a step. Where it has too little work for the chip, long caches are cut into splits whose results are
    // merged; there are at most `most_parts` of them.
    void build(const di_step& step, int tile_rows, const Chip& chip, int most_parts);

    const AttentionShape& shape() const { return shape_; }
    const std::vector<AttentionWork>& work() const { return work_; }
    const std::vector<AttentionMerge>& merges() const { return merges_; }

  private:
    AttentionShape shape_;
    std::vector<AttentionWork> work_;
    std::vector<AttentionMerge> merges_;
};

}  // namespace di
