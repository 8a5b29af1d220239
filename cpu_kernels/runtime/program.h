// A program on the CPU: its instructions, packed weights, KV pool, activations, and the run of one step over them.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "../../dashinfer_lite/include/dashinfer_device.h"
#include "../kernels.h"
#include "attention_plan.h"
#include "experts.h"
#include "hand.h"
#include "os.h"
#include "sampler.h"
#include "team.h"
#include "weight.h"

namespace di {

// What an open device owns and its programs share.
struct CpuDevice {
    const KernelTable* kernels;
    Team* team;
};

class Program {
  public:
    // Null, with the reason in `why`, where the device cannot run it or memory is short.
    static Program* create(CpuDevice* device, const di_program_desc& desc, char* why, size_t why_bytes);
    ~Program();
    Program(const Program&) = delete;
    Program& operator=(const Program&) = delete;

    const Weight* weight(int id) const {
        return id < 0 || static_cast<size_t>(id) >= weights_.size() ? nullptr : &weights_[static_cast<size_t>(id)];
    }
    const KernelTable& kernels() const { return *device_->kernels; }
    // Whether vector `id` may be written: an order of columns has to name each of them once.
    bool accepts(int id, const void* values, char* why, size_t why_bytes) const;
    int run(const di_step& step, char* why, size_t why_bytes);

    int64_t block_bytes() const { return static_cast<int64_t>(kv_.block_bytes()); }
    int kv_move(bool to_host, int n, const int32_t* blocks, void* const* host);
    int slot_write(int slot, int rows, const float* data);
    int slot_read(int slot, int rows, float* data);
    void stats(di_stats* out) const;
    void profile(bool on) { profiling_ = on; }

  private:
    friend struct Run;
    explicit Program(CpuDevice* device) : device_(device) {}

    bool prepare(const di_program_desc& desc, char* why, size_t why_bytes);
    int most_rows(const di_slot& slot) const;
    View view(int slot, int rows) const;
    int check(const di_step& step, char* why, size_t why_bytes) const;
    void index_tokens(const di_step& step);
    void plan_attention(const di_step& step);
    void reset_counters(size_t from);  // of the instructions from there on
    uint64_t begin_rounds(uint64_t count);

    CpuDevice* device_;
    std::vector<di_slot> slots_;
    std::vector<di_instr> body_, tail_;
    std::vector<Weight> weights_;
    di_kv_desc kv_desc_{};
    KvLayout kv_{};
    int32_t max_tokens_ = 0, tail_rows_ = 0, max_seqs_ = 0, max_logprobs_ = 0, vocab_ = 0, experts_per_token_ = 0;
    Memory weight_memory_{}, kv_memory_{}, arena_memory_{}, scratch_memory_{};
    size_t scratch_stride_ = 0, expert_memory_ = 0;  // of a thread; where its memory for experts begins in it
    ExpertSpace expert_space_;

    std::vector<int32_t> last_token_;                                    // by sequence slot
    std::vector<int32_t> token_, block_of_, offset_of_, prompt_len_of_;  // [T] of the current step
    std::vector<AttentionPlan> plans_;
    std::vector<int> plan_of_;                     // body instruction → plan, or -1
    std::unique_ptr<Counter[]> counters_;          // two an instruction: tasks and merges
    std::unique_ptr<Hand[]> hands_;                // a thread and instruction
    uint64_t round_ = 0;                           // of the hands: passes over the body or the tail so far
    std::vector<SamplerScratch> sampler_scratch_;  // a thread
    std::vector<bool> touched_;                    // blocks that were ever handed out
    int64_t blocks_touched_ = 0;
    bool profiling_ = false;
    int64_t last_step_ns_ = 0;
    int64_t op_ns_[32] = {};
};

// One thread's view of a step while it runs.
struct Run {
    Program& program;
    const KernelTable& kernels;
    const di_step& step;
    int thread, threads;
    uint64_t round;                    // of the hands
    int tail_row = 0, tail_count = 0;  // the current tile of logit rows

    void barrier() const { program.device_->team->barrier(thread); }
    int rows(const di_slot& slot) const {
        return slot.rows == DI_ROWS_T ? step.T : slot.rows == DI_ROWS_E ? step.T * experts_per_token() : tail_count;
    }
    View view(int slot) const;
    const Weight& weight(int id) const { return program.weights_[static_cast<size_t>(id)]; }
    const float* vector(int id) const { return id < 0 ? nullptr : reinterpret_cast<const float*>(weight(id).data); }
    const KvLayout& kv() const { return program.kv_; }
    float* scratch() const;
    int experts_per_token() const { return program.experts_per_token_; }
    int expert_chunk() const { return program.expert_space_.chunk(); }
    ExpertSpace::Parts expert_memory() const;
    // Whether no row of the tile needs what comes after its hidden state.
    bool wants_no_tokens() const {
        for (int r = tail_row; r < tail_row + tail_count; ++r)
            if (!(step.sample[r].flags & DI_SAMPLE_HIDDEN)) return false;
        return true;
    }
    const int32_t* tokens() const { return program.token_.data(); }
    const int32_t* block_of() const { return program.block_of_.data(); }
    const int32_t* offset_of() const { return program.offset_of_.data(); }
    const int32_t* prompt_len_of() const { return program.prompt_len_of_.data(); }
    AttentionPlan& plan(int index) const {
        return program.plans_[static_cast<size_t>(program.plan_of_[static_cast<size_t>(index)])];
    }
    Counter& counter(int index, int which) const { return program.counters_[static_cast<size_t>(index * 2 + which)]; }
    Hand& hand(int index, int owner) const { return program.hands_[static_cast<size_t>(index * threads + owner)]; }
    SamplerScratch& sampler_scratch() const { return program.sampler_scratch_[static_cast<size_t>(thread)]; }
    int vocab() const { return program.vocab_; }
    int max_logprobs() const { return program.max_logprobs_; }
    int32_t* last_token() const { return program.last_token_.data(); }
    int slots() const { return static_cast<int>(program.last_token_.size()); }
};

// Does this thread's share of one instruction; `index` is its place in the body, or behind it in the tail.
using OpFn = void (*)(const Run& run, const di_instr& instr, int index);
OpFn op_function(int op);  // null: unknown

// Whether a program's instruction is one that this device can run; the reason in `why` otherwise.
bool check_instr(const di_instr& instr, bool in_tail, const std::vector<di_slot>& slots,
                 const std::vector<Weight>& weights, const di_kv_desc& kv, int experts_per_token, char* why,
                 size_t why_bytes);

}  // namespace di
