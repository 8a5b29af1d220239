// Everything about one step that kernels read, in one block of memory: filled on the host, copied once, at addresses
// that depend on the step's bucket alone.
#pragma once
#include <cstddef>
#include <vector>

#include "plan_attention.h"

namespace di {

// How large a step is: its own size, or that of the bucket whose captured graph serves it.
struct StepSize {
    int T = 0, B = 0, R = 0;
    int position_rows = 1;
    int table_width = 0;             // entries of a block table's row
    std::vector<int> works, merges;  // of each attention plan

    bool operator<(const StepSize& other) const;
};

// Where each array lies, in bytes from the block's start.
struct StepLayout {
    explicit StepLayout(const StepSize& size);

    // How much of a bucket is used.
    static constexpr size_t kCountT = 0, kCountR = 4, kCountE = 8;  // E: rows of experts
    static constexpr size_t count_works(size_t plan) { return 16 + 8 * plan; }
    static constexpr size_t count_merges(size_t plan) { return 20 + 8 * plan; }

    size_t tokens, positions, kv_slot;       // [T], [position_rows][T], [T]
    size_t history, prompt_len;              // [T] of the token's sequence
    size_t q_offset, kv_len, bidirectional;  // [B + 1], [B], [B]
    size_t logit_row, samples;               // [R]
    std::vector<size_t> works, merges;
    size_t table;  // [B][table_width]
    size_t bytes;
};

// Arrays of any length that a step brings along: what samples point to, blocks to clear, external rows.
class Lists {
  public:
    void clear() { bytes_.clear(); }
    // Copies an array and returns where it begins.
    size_t add(const void* data, size_t size);
    const std::vector<unsigned char>& bytes() const { return bytes_; }

  private:
    std::vector<unsigned char> bytes_;
};

// Adds what the step's samples point to. Their addresses are completed once the lists have a place on the GPU.
void list_samples(const di_step& step, int vocab, int max_top, Lists* lists, std::vector<Sample>* samples);

// Fills the block of a step no larger than `size`. `lists_at` is where the lists lie on the GPU; samples' addresses are
// places in them, plus one.
void fill_block(const di_step& step, const StepSize& size, const StepLayout& layout,
                const std::vector<AttentionPlan>& plans, int block_tokens, int experts_per_token,
                const std::vector<Sample>& samples, uint64_t lists_at, unsigned char* block);

}  // namespace di
