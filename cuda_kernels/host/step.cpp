// A step's way through the GPU: checked, planned, copied in one piece, launched, and its results brought back when
// asked for.
#include <algorithm>
#include <cstring>

#include "launcher.h"

namespace di {

namespace {

constexpr size_t kMostGraphs = 128;
constexpr size_t kSmallest = size_t{1} << 10;  // of the block and the lists

int power_of_two(int x) {
    int p = 1;
    while (p < x) p *= 2;
    return p;
}

// 1, 2, 4, 8, then multiples of 8.
int bucket_rows(int x) { return x <= 8 ? power_of_two(x) : static_cast<int>(round_up(x, 8)); }

}  // namespace

int Program::submit(const di_step& step, uint64_t* ticket, Why why) {
    if (broken_) return why.fail(DI_EDEAD, "the GPU failed in an earlier step; load the model again");
    const StepLimits limits{desc_.max_tokens, desc_.max_seqs, 2 * desc_.max_seqs, desc_.host_blocks, desc_.kv};
    if (const int bad = check_step(step, limits, why)) return bad;
    const ContextScope scope(driver(), device_->context);
    Flight& flight = *flights_[tickets_ % kStepsInFlight];
    if (flight.flying)
        if (const int bad = complete(&flight, why)) return bad;
    if (const int bad = plan(step, why)) return bad;
    const StepSize exact = step_size(step), size = is_captured(step) ? bucket_of(exact) : exact;
    if (const int bad = stage(step, size, &flight, why)) return fail(bad);
    if (const int bad = execute(step, size, &flight, why)) return fail(bad);
    flight.flying = true;
    flight.step = step;
    flight.ticket = *ticket = ++tickets_;
    for (int i = 0; i < step.n_clear; ++i) touch(step.clear_blocks[i]);
    for (int i = 0; i < step.n_swap_in; ++i) touch(step.swap_in[2 * i]);
    return DI_OK;
}

int Program::wait(uint64_t ticket, Why why) {
    if (ticket == 0 || ticket > tickets_)
        return why.fail(DI_EINVAL, "ticket %llu was never given out", (unsigned long long)ticket);
    Flight& flight = *flights_[(ticket - 1) % kStepsInFlight];
    if (!flight.flying || flight.ticket != ticket) return DI_OK;
    const ContextScope scope(driver(), device_->context);
    return complete(&flight, why);
}

// An error of the GPU stays: nothing that it computes afterwards is to be trusted.
int Program::fail(int status) {
    broken_ |= status == DI_EDEAD;
    return status;
}

void Program::touch(int block) {
    const auto at = static_cast<size_t>(block);
    if (!touched_[at]) touched_[at] = true, ++blocks_touched_;
}

// ---- before the launch ----

int Program::plan(const di_step& step, Why why) {
    bool splits = false;
    if (!plans_.empty()) tile_rows_ = attention_rows(pool_, step.T == step.B, device_->chip);
    for (AttentionPlan& each : plans_) {
        each.build(step, tile_rows_, device_->chip, static_cast<int>(part_rows_ / tile_rows_));
        splits |= !each.merges().empty();
    }
    if (!splits || parts_.at()) return DI_OK;
    if (parts_.allocate(static_cast<size_t>(part_rows_ * part_row_bytes_), why, "partial results") == DI_OK)
        return DI_OK;
    part_rows_ = 0;
    return plan(step, why);
}

StepSize Program::step_size(const di_step& step) const {
    StepSize size;
    size.T = step.T;
    size.B = step.B;
    size.R = tail_.empty() ? 0 : step.R;
    size.position_rows = step.position_rows;
    for (int b = 0; b < step.B && desc_.kv.layers > 0; ++b)
        size.table_width = std::max(size.table_width, (step.kv_len[b] - 1) / desc_.kv.block_tokens + 1);
    for (const AttentionPlan& each : plans_) {
        size.works.push_back(static_cast<int>(each.work().size()));
        size.merges.push_back(static_cast<int>(each.merges().size()));
    }
    return size;
}

// Steps that bring one token a sequence come by the thousand and look alike.
bool Program::is_captured(const di_step& step) const {
    return captures_ && !profiling_ && step.T == step.B && step.R <= desc_.tail_rows && step.n_external == 0 &&
           !step.out_logits && !step.out_hidden;
}

StepSize Program::bucket_of(const StepSize& exact) const {
    StepSize size = exact;
    size.T = size.B = std::min(bucket_rows(exact.T), desc_.max_tokens);
    if (exact.R) size.R = std::min(bucket_rows(exact.R), desc_.tail_rows);
    if (exact.table_width) size.table_width = power_of_two(exact.table_width);
    for (int& works : size.works) works = power_of_two(works);
    for (int& merges : size.merges) merges = merges ? power_of_two(merges) : 0;
    return size;
}

int Program::stage(const di_step& step, const StepSize& size, Flight* flight, Why why) {
    const StepLayout layout(size);
    step_lists_.clear();
    samples_.clear();
    if (vocab_ > 0) list_samples(step, vocab_, desc_.max_logprobs, &step_lists_, &samples_);
    if (step.n_clear > 0) clear_at_ = step_lists_.add(step.clear_blocks, 4 * static_cast<size_t>(step.n_clear));
    if (step.n_external > 0) {
        size_t hidden = 0;
        for (const di_instr& in : body_)
            if (in.op == DI_OP_EMBED) hidden = static_cast<size_t>(weights_[static_cast<size_t>(in.weight[0])].desc.k);
        const auto count = static_cast<size_t>(step.n_external);
        external_count_at_ = step_lists_.add(&step.n_external, 4);
        external_row_at_ = step_lists_.add(step.external_row, 4 * count);
        external_at_ = step_lists_.add(step.external, 4 * count * hidden);
    }
    const std::vector<unsigned char>& lists = step_lists_.bytes();
    if (const int bad = reserve(layout.bytes, lists.size(), flight, why)) return bad;
    fill_block(step, size, layout, plans_, desc_.kv.block_tokens, desc_.experts_per_token, samples_, lists_.at(),
               flight->block.data());
    const Driver& d = driver();
    if (!lists.empty()) {
        std::memcpy(flight->lists.data(), lists.data(), lists.size());
        const int result = d.cuMemcpyHtoDAsync_v2(lists_.at(), flight->lists.data(), lists.size(), stream_);
        if (const int bad = d.check(result, why, "copying a step")) return bad;
    }
    const int result = d.cuMemcpyHtoDAsync_v2(block_.at(), flight->block.data(), layout.bytes, stream_);
    return d.check(result, why, "copying a step");
}

int Program::reserve(size_t block_bytes, size_t lists_bytes, Flight* flight, Why why) {
    const auto grown = [](size_t bytes) { return std::max(kSmallest, bytes + bytes / 2); };
    if (flight->block.bytes() < block_bytes)
        if (const int bad = flight->block.allocate(grown(block_bytes), why, "a step")) return bad;
    if (flight->lists.bytes() < lists_bytes)
        if (const int bad = flight->lists.allocate(grown(lists_bytes), why, "a step's lists")) return bad;
    if (block_.bytes() >= block_bytes && lists_.bytes() >= lists_bytes) return DI_OK;
    if (const int bad = driver().check(driver().cuStreamSynchronize(stream_), why, "a step failed")) return bad;
    if (block_.bytes() < block_bytes) {
        drop_graphs();  // they know the block's address
        if (const int bad = block_.allocate(grown(block_bytes), why, "a step")) return bad;
    }
    if (lists_.bytes() < lists_bytes)
        if (const int bad = lists_.allocate(grown(lists_bytes), why, "a step's lists")) return bad;
    return DI_OK;
}

// Copies of blocks to and from the host run on their own stream, beside the steps in flight, which use none of these
// blocks. This step waits for them.
int Program::swap(const di_step& step, Why why) {
    if (step.n_swap_out == 0 && step.n_swap_in == 0) return DI_OK;
    const Driver& d = driver();
    const auto size = static_cast<size_t>(pool_.block_bytes);
    const auto block = [&](const int32_t* swap) { return kv_memory_.at() + size * static_cast<size_t>(swap[0]); };
    const auto host = [&](const int32_t* swap) { return host_memory_.data() + size * static_cast<size_t>(swap[1]); };
    int result = 0;
    for (const int32_t* at = step.swap_out; !result && at < step.swap_out + 2 * step.n_swap_out; at += 2)
        result = d.cuMemcpyDtoHAsync_v2(host(at), block(at), size, copy_stream_);
    for (const int32_t* at = step.swap_in; !result && at < step.swap_in + 2 * step.n_swap_in; at += 2)
        result = d.cuMemcpyHtoDAsync_v2(block(at), host(at), size, copy_stream_);
    if (!result) result = d.cuEventRecord(order_, copy_stream_);
    if (!result) result = d.cuStreamWaitEvent(stream_, order_, 0);
    return d.check(result, why, "copying KV blocks");
}

// ---- the launch ----

int Program::execute(const di_step& step, const StepSize& size, Flight* flight, Why why) {
    const Driver& d = driver();
    if (const int bad = d.check(d.cuEventRecord(flight->begin, stream_), why, "an event")) return bad;
    if (const int bad = swap(step, why)) return bad;
    if (const int bad = Launcher(*this, step, size, why).clear_blocks()) return bad;
    if (const int bad = is_captured(step) ? run_captured(step, size, why) : run(step, size, why)) return bad;
    if (const int bad = collect(step, flight, why)) return bad;
    return d.check(d.cuEventRecord(flight->end, stream_), why, "an event");
}

int Program::run(const di_step& step, const StepSize& size, Why why) {
    Launcher launcher(*this, step, size, why);
    if (const int bad = launcher.body()) return bad;
    return launcher.tail(false);
}

// The first step of a bucket runs launch by launch and so loads its kernels; the second is captured.
int Program::run_captured(const di_step& step, const StepSize& size, Why why) {
    const auto found = graphs_.find(size);
    if (found == graphs_.end()) {
        if (graphs_.size() >= kMostGraphs) drop_graphs();
        graphs_[size] = nullptr;
    } else if (!found->second && capture(step, size, &found->second, why) != DI_OK) {
        captures_ = false;
    }
    if (found == graphs_.end() || !found->second) {
        Launcher launcher(*this, step, size, why);
        if (const int bad = launcher.body()) return bad;
        return launcher.tail(true);
    }
    return driver().check(driver().cuGraphLaunch(found->second, stream_), why, "launching a graph");
}

int Program::capture(const di_step& step, const StepSize& size, void** executable, Why why) {
    const Driver& d = driver();
    if (const int bad = d.check(d.cuStreamBeginCapture_v2(stream_, kRelaxedCapture), why, "capturing")) return bad;
    Launcher launcher(*this, step, size, why);
    int bad = launcher.body();
    if (!bad) bad = launcher.tail(true);
    void* graph = nullptr;
    const int ended = d.check(d.cuStreamEndCapture(stream_, &graph), why, "capturing");
    if (!bad) bad = ended;
    if (!bad) bad = d.check(d.cuGraphInstantiateWithFlags(executable, graph, 0), why, "capturing");
    if (graph) d.cuGraphDestroy(graph);
    if (bad) *executable = nullptr;
    return bad;
}

void Program::drop_graphs() {
    for (const auto& [size, graph] : graphs_)
        if (graph) driver().cuGraphExecDestroy(graph);
    graphs_.clear();
}

// ---- results ----

int Program::collect(const di_step& step, Flight* flight, Why why) {
    if (vocab_ == 0 || step.R == 0) return DI_OK;
    const Driver& d = driver();
    const auto copy = [&](size_t at, size_t bytes) {
        const int result = d.cuMemcpyDtoHAsync_v2(flight->results.data() + at, results_.at() + at, bytes, stream_);
        return d.check(result, why, "copying results");
    };
    const auto rows = static_cast<size_t>(step.R);
    if (const int bad = copy(0, result_at(3) + 4 * rows)) return bad;
    flight->has_tops = false;
    for (const Sample& sample : samples_) flight->has_tops |= sample.n_top > 0;
    const size_t tops = 4 * rows * static_cast<size_t>(desc_.max_logprobs);
    if (!flight->has_tops || tops == 0) return DI_OK;
    if (const int bad = copy(tops_at(0), tops)) return bad;
    return copy(tops_at(1), tops);
}

int Program::complete(Flight* flight, Why why) {
    flight->flying = false;
    const Driver& d = driver();
    if (const int bad = d.check(d.cuEventSynchronize(flight->end), why, "a step failed on the GPU")) return fail(bad);
    float milliseconds = 0;
    if (d.cuEventElapsedTime(&milliseconds, flight->begin, flight->end) == 0)
        last_step_ns_ = static_cast<int64_t>(static_cast<double>(milliseconds) * 1e6);
    const di_step& step = flight->step;
    if (vocab_ == 0 || step.R == 0) return DI_OK;
    const auto rows = static_cast<size_t>(step.R), tops = rows * static_cast<size_t>(desc_.max_logprobs);
    const unsigned char* results = flight->results.data();
    std::memcpy(step.out_token, results + result_at(0), 4 * rows);
    std::memcpy(step.out_status, results + result_at(1), 4 * rows);
    std::memcpy(step.out_logprob, results + result_at(2), 4 * rows);
    std::memcpy(step.out_rank, results + result_at(3), 4 * rows);
    if (flight->has_tops) {
        std::memcpy(step.out_top_ids, results + tops_at(0), 4 * tops);
        std::memcpy(step.out_top_logprobs, results + tops_at(1), 4 * tops);
    } else {
        std::fill_n(step.out_top_ids, tops, -1);
        std::fill_n(step.out_top_logprobs, tops, 0.0f);
    }
    return DI_OK;
}

}  // namespace di
