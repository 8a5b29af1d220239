// A program on a GPU: its weights, cache and activations, and its steps in flight.
#pragma once
#include <chrono>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "check.h"
#include "device.h"
#include "large_products.h"
#include "step_block.h"

namespace di {

class Launcher;

constexpr int kStepsInFlight = 2;

class Program {
  public:
    // Null, with the reason, for what this device cannot run.
    static Program* create(std::shared_ptr<OpenDevice> device, const di_program_desc& desc, Why why, int* status);
    ~Program();
    Program(const Program&) = delete;
    Program& operator=(const Program&) = delete;

    int weight_write(int weight, int row0, int rows, const void* const* row_data, int source, Why why);
    int weight_write_codes(int weight, int row0, int rows, const uint8_t* const* codes, const float* const* scales,
                           const int16_t* const* zeros, Why why);
    int submit(const di_step& step, uint64_t* ticket, Why why);
    int wait(uint64_t ticket, Why why);
    int64_t block_bytes() const { return desc_.kv.layers > 0 ? pool_.block_bytes : 0; }
    int kv_move(bool to_host, int n, const int32_t* blocks, void* const* host, uint64_t* ticket);
    void stats(di_stats* out) const;
    void profile(bool on) { profiling_ = on; }
    int slot_write(int slot, int rows, const float* data);
    int slot_read(int slot, int rows, float* data);

  private:
    // A step on its way: what it was copied from, where its results will be, and whose they are.
    struct Flight {
        explicit Flight(const Driver& driver) : block(driver), lists(driver), results(driver) {}
        PinnedMemory block, lists, results;
        void *begin = nullptr, *end = nullptr;  // events
        uint64_t ticket = 0;
        bool flying = false, has_tops = false;
        di_step step{};
    };
    friend class Launcher;

    explicit Program(std::shared_ptr<OpenDevice> device);
    int prepare(const di_program_desc& desc, Why why);
    int place_weights(const di_program_desc& desc, Why why);
    int place_cache(Why why);
    int place_host_blocks(Why why);
    int place_work(Why why);
    int place_experts(Why why);
    void place_large_products();
    int check_order(int weight, const void* values, Why why) const;
    int make_flights(Why why);
    void plan_attention();

    int plan(const di_step& step, Why why);
    int stage(const di_step& step, const StepSize& size, Flight* flight, Why why);
    int swap(const di_step& step, Why why);
    int execute(const di_step& step, const StepSize& size, Flight* flight, Why why);
    StepSize step_size(const di_step& step) const;
    StepSize bucket_of(const StepSize& exact) const;
    bool is_captured(const di_step& step) const;
    int reserve(size_t block_bytes, size_t lists_bytes, Flight* flight, Why why);
    int run(const di_step& step, const StepSize& size, Why why);
    int run_captured(const di_step& step, const StepSize& size, Why why);
    int capture(const di_step& step, const StepSize& size, void** graph, Why why);
    int collect(const di_step& step, Flight* flight, Why why);
    int complete(Flight* flight, Why why);
    int fail(int status);
    void touch(int block);
    void drop_graphs();
    int slot_rows(int slot, int rows, std::vector<unsigned char>* bytes, DevicePointer* at, size_t* stride);

    // Results on the GPU: tokens, states, logprobs and ranks of max_tokens rows each, then ids and logprobs of the
    // alternatives.
    size_t result_at(int array) const {
        return size_t{4} * static_cast<size_t>(array) * static_cast<size_t>(desc_.max_tokens);
    }
    size_t tops_at(int array) const { return result_at(4 + array * desc_.max_logprobs); }
    const Driver& driver() const { return device_->driver; }

    std::shared_ptr<OpenDevice> device_;  // outlives its programs
    di_program_desc desc_{};              // its arrays are those below
    std::vector<di_slot> slots_;
    std::vector<di_instr> body_, tail_;
    std::vector<Weight> weights_;
    std::vector<AttentionPlan> plans_;
    std::vector<int> plan_of_;  // of each instruction of the body, -1: none
    KvPool pool_{};
    int vocab_ = 0;

    DeviceMemory weight_memory_, kv_memory_, arena_, block_, lists_, results_, sampling_, last_tokens_, parts_,
        experts_;
    LargeProducts large_;
    int tile_rows_ = kAttentionRows;  // of the step's pieces of attention
    int64_t part_row_bytes_ = 0;      // of a query row's partial result, all KV heads together
    int64_t part_rows_ = 0;           // that there is room for
    int64_t expert_sum_bytes_ = 0;    // of the products of an expert_sum; the rows' order by expert lies behind them
    Lists step_lists_;
    std::vector<Sample> samples_;
    size_t clear_at_ = 0, external_row_at_ = 0, external_at_ = 0, external_count_at_ = 0;  // in the step's lists

    void *stream_ = nullptr, *copy_stream_ = nullptr, *order_ = nullptr;
    PinnedMemory host_memory_;  // KV blocks that steps swap with
    PinnedMemory staging_;      // KV blocks on their way to and from anywhere else
    std::vector<std::unique_ptr<Flight>> flights_;
    uint64_t tickets_ = 0;
    std::map<StepSize, void*> graphs_;  // null: seen once, not captured yet
    bool captures_ = true;

    std::mutex uploads_;
    std::vector<bool> touched_;
    int64_t blocks_touched_ = 0, last_step_ns_ = 0;
    bool profiling_ = false, broken_ = false;
    int64_t op_ns_[32] = {};
};

}  // namespace di
