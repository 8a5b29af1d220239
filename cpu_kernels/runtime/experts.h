// Mixtures of experts: which rows of a step belong to which expert, and each thread's memory for their products.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "../../dashinfer_lite/include/dashinfer_device.h"
#include "../kernels.h"

namespace di {

struct Run;

// What one thread needs for the expert instructions of a program, in one piece of memory.
class ExpertSpace {
  public:
    // Makes room for an instruction of a program with so many tokens and experts a token.
    void include(const di_instr& in, const std::vector<di_slot>& slots, int tokens, int chosen);
    size_t bytes() const;

    int chunk() const;  // rows of an expert that are multiplied at a time

    static constexpr size_t kOutBytes = size_t{1} << 20;
    struct Parts {
        int32_t *ids, *rows;       // [T * k]
        int32_t *begin, *tasks;    // [E + 1]
        int32_t *source, *target;  // [chunk]
        float* weights;            // [chunk]
        uint8_t *x, *grid, *y;
    };
    Parts at(uint8_t* memory) const;

  private:
    size_t rows_ = 0, experts_ = 0, x_row_ = 0, grid_row_ = 0;  // the last two in bytes
};

// The rows t * k + j of a step by expert, each expert's in ascending order. A counting sort that every thread makes for
// itself: it is shorter than waiting for another thread.
class RowsByExpert {
  public:
    // An id that no expert has counts as the nearest one: nothing is ever read elsewhere.
    RowsByExpert(const View& routing, int chosen, int experts, const ExpertSpace::Parts& memory);

    int experts() const { return experts_; }
    int count(int e) const { return begin_[e + 1] - begin_[e]; }
    const int32_t* rows(int e) const { return rows_ + begin_[e]; }
    // Whether an expert has so few rows on average that its weights, not its rows, are what is moved.
    bool few() const { return begin_[experts_] <= 16 * touched_; }

  private:
    const int32_t *rows_, *begin_;
    int experts_, touched_ = 0;
};

// The functions of ops.cpp for these instructions.
void route(const Run& run, const di_instr& in, int index);
void expert_linear(const Run& run, const di_instr& in, int index);
void expert_sum(const Run& run, const di_instr& in, int index);
void gate_rows(const Run& run, const di_instr& in, int index);

}  // namespace di
