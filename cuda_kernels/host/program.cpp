// A program's creation: everything is checked and every byte of memory taken before the first step.
#include "program.h"

#include <algorithm>
#include <new>

#include "settings.h"

namespace di {

namespace {

constexpr size_t kPartBytes = size_t{64} << 20;  // partial results of attention, at most
constexpr int64_t kMostPartRows = 65536;

int padded_head(int size) { return static_cast<int>(round_up(size, kCell)); }

KvPool pool_of(const di_kv_desc& kv) {
    const int bits = kv.dtype == DI_F32 ? 32 : kv.dtype <= DI_BF16 ? 16 : kv.dtype == DI_U8 ? 8 : 4;
    KvPool pool{};
    pool.heads = kv.heads;
    pool.head_size = padded_head(kv.head_size);
    pool.block_tokens = kv.block_tokens;
    pool.dtype = kv.dtype;
    const int64_t rows = int64_t{2} * kv.heads * kv.block_tokens;  // of K and V
    pool.layer_bytes = rows * pool.head_size * bits / 8 + (bits <= 8 ? rows * 8 : 0);
    pool.block_bytes = pool.layer_bytes * kv.layers;
    return pool;
}

}  // namespace

Program* Program::create(std::shared_ptr<OpenDevice> device, const di_program_desc& desc, Why why, int* status) {
    auto* program = new (std::nothrow) Program(std::move(device));
    if (!program) return *status = why.fail(DI_ENOMEM, "out of memory"), nullptr;
    *status = program->prepare(desc, why);
    if (*status == DI_OK) return program;
    delete program;
    return nullptr;
}

Program::Program(std::shared_ptr<OpenDevice> device)
    : device_(std::move(device)),
      weight_memory_(driver()),
      kv_memory_(driver()),
      arena_(driver()),
      block_(driver()),
      lists_(driver()),
      results_(driver()),
      sampling_(driver()),
      last_tokens_(driver()),
      parts_(driver()),
      experts_(driver()),
      host_memory_(driver()),
      large_(*device_),
      staging_(driver()) {
    captures_ = setting("graphs") != "0";
}

Program::~Program() {
    const ContextScope scope(driver(), device_->context);
    for (void* stream : {stream_, copy_stream_})
        if (stream) driver().cuStreamSynchronize(stream);
    drop_graphs();
    for (const auto& flight : flights_) {
        if (flight->begin) driver().cuEventDestroy_v2(flight->begin);
        if (flight->end) driver().cuEventDestroy_v2(flight->end);
    }
    flights_.clear();
    host_memory_.release();
    staging_.release();
    large_.release();
    if (order_) driver().cuEventDestroy_v2(order_);
    if (copy_stream_) driver().cuStreamDestroy_v2(copy_stream_);
    if (stream_) driver().cuStreamDestroy_v2(stream_);
    for (DeviceMemory* memory : {&weight_memory_, &kv_memory_, &arena_, &block_, &lists_, &results_, &sampling_,
                                 &last_tokens_, &parts_, &experts_})
        memory->release();
}

int Program::prepare(const di_program_desc& desc, Why why) {
    if (const int bad = check_limits(desc, why)) return bad;
    if (const int bad = check_slots(desc, why)) return bad;
    if (const int bad = check_cache(desc.kv, why)) return bad;
    desc_ = desc;
    slots_.assign(desc.slots, desc.slots + desc.n_slots);
    body_.assign(desc.instrs, desc.instrs + desc.n_body);
    tail_.assign(desc.instrs + desc.n_body, desc.instrs + desc.n_body + desc.n_tail);
    for (int i = 0; i < desc.n_weights; ++i) {
        Weight weight;
        if (const int bad = weight.describe(desc.weights[i], i, why)) return bad;
        weights_.push_back(weight);
    }
    for (const auto* list : {&body_, &tail_})
        for (const di_instr& instr : *list)
            if (const int bad =
                    check_instr(instr, list == &tail_, slots_, weights_, desc_.kv, desc_.experts_per_token, why))
                return bad;
    for (const di_instr& instr : tail_) {
        if (instr.op != DI_OP_SAMPLE) continue;
        if (vocab_) return why.fail(DI_EUNSUPPORTED, "program: more than one instruction samples");
        vocab_ = instr.i[0];
    }
    desc_.slots = slots_.data();
    desc_.instrs = nullptr;
    desc_.weights = nullptr;
    const ContextScope scope(driver(), device_->context);
    if (const int bad = driver().check(driver().cuStreamCreate(&stream_, kNonBlocking), why, "a stream")) return bad;
    if (const int bad = driver().check(driver().cuStreamCreate(&copy_stream_, kNonBlocking), why, "a stream"))
        return bad;
    if (const int bad = driver().check(driver().cuEventCreate(&order_, kNoTiming), why, "an event")) return bad;
    plan_attention();
    if (const int bad = place_weights(desc, why)) return bad;
    if (const int bad = place_cache(why)) return bad;
    if (const int bad = place_work(why)) return bad;
    if (const int bad = place_experts(why)) return bad;
    if (const int bad = make_flights(why)) return bad;
    place_large_products();
    return DI_OK;
}

int Program::place_weights(const di_program_desc& desc, Why why) {
    size_t bytes = 0;
    for (const Weight& weight : weights_)
        bytes = static_cast<size_t>(round_up(static_cast<int64_t>(bytes + weight.bytes()), kWeightAlign));
    if (const int bad = weight_memory_.allocate(bytes, why, "weights")) return bad;
    DevicePointer at = weight_memory_.at();
    for (Weight& weight : weights_) {
        weight.place(at);
        at += static_cast<DevicePointer>(round_up(static_cast<int64_t>(weight.bytes()), kWeightAlign));
    }
    (void)desc;
    return driver().check(driver().cuMemsetD8Async(weight_memory_.at(), 0, weight_memory_.bytes(), stream_), why,
                          "weights");
}

int Program::place_cache(Why why) {
    const di_kv_desc& kv = desc_.kv;
    if (kv.layers <= 0) return DI_OK;
    pool_ = pool_of(kv);
    const long double bytes = static_cast<long double>(pool_.block_bytes) * kv.blocks;
    if (bytes > 0x1p62L) return why.fail(DI_ENOMEM, "the GPU has no memory for %d KV blocks", kv.blocks);
    if (const int bad = kv_memory_.allocate(static_cast<size_t>(pool_.block_bytes) * static_cast<size_t>(kv.blocks),
                                            why, "KV blocks"))
        return bad;
    pool_.data = reinterpret_cast<uint8_t*>(kv_memory_.at());
    touched_.assign(static_cast<size_t>(kv.blocks), false);
    if (const int bad = place_host_blocks(why)) return bad;
    return driver().check(driver().cuMemsetD8Async(kv_memory_.at(), 0, kv_memory_.bytes(), stream_), why, "KV blocks");
}

int Program::place_host_blocks(Why why) {
    if (desc_.host_blocks < 0) return why.fail(DI_EINVAL, "program: %d host blocks", desc_.host_blocks);
    if (desc_.host_blocks == 0) return DI_OK;
    const long double bytes = static_cast<long double>(pool_.block_bytes) * desc_.host_blocks;
    if (bytes > 0x1p62L) return why.fail(DI_ENOMEM, "no pinned memory for %d KV blocks", desc_.host_blocks);
    return host_memory_.allocate(static_cast<size_t>(pool_.block_bytes) * static_cast<size_t>(desc_.host_blocks), why,
                                 "KV blocks");
}

// Activations, the sampler's rows, results, and the tokens that stay on the GPU.
int Program::place_work(Why why) {
    if (const int bad = arena_.allocate(static_cast<size_t>(desc_.arena_bytes), why, "activations")) return bad;
    if (const int bad = last_tokens_.allocate(static_cast<size_t>(desc_.max_seqs) * 2 * 4, why, "tokens")) return bad;
    if (const int bad = results_.allocate(tops_at(2), why, "results")) return bad;
    const auto rows = static_cast<size_t>(desc_.tail_rows), columns = static_cast<size_t>(round_up(vocab_, kCell));
    if (vocab_ > 0)
        if (const int bad = sampling_.allocate(rows * columns * 8, why, "sampling")) return bad;
    for (const DeviceMemory* memory : {&arena_, &last_tokens_, &results_, &sampling_})
        if (memory->at())
            if (const int bad = driver().check(driver().cuMemsetD8Async(memory->at(), 0, memory->bytes(), stream_), why,
                                               "clearing memory"))
                return bad;
    return DI_OK;
}

// Products that are summed over experts, then the rows of a product sorted by expert, their tiles and the tiles'
// number.
int Program::place_experts(Why why) {
    const int64_t rows = int64_t{desc_.max_tokens} * desc_.experts_per_token;
    int64_t experts = 0;
    for (const di_instr& instr : body_) {
        if (instr.op != DI_OP_EXPERT_LINEAR && instr.op != DI_OP_EXPERT_SUM) continue;
        experts = std::max<int64_t>(experts, instr.i[0]);
        if (instr.op == DI_OP_EXPERT_SUM)
            expert_sum_bytes_ =
                std::max(expert_sum_bytes_, 4 * round_up(rows, kCell) * slots_[static_cast<size_t>(instr.out[0])].cols);
    }
    if (experts == 0) return DI_OK;
    const int64_t tiles = experts + rows / kCell + 1;
    const int64_t bytes =
        expert_sum_bytes_ + round_up(4 * rows, 256) + tiles * static_cast<int64_t>(sizeof(ExpertTile)) + 256;
    return experts_.allocate(static_cast<size_t>(bytes), why, "experts");
}

// What is left of the memory serves cuBLASLt, where the program has products for it.
void Program::place_large_products() {
    int64_t bytes = -1;
    for (const auto* list : {&body_, &tail_})
        for (const di_instr& in : *list) {
            if (in.op != DI_OP_LINEAR) continue;
            const Weight& w = weights_[static_cast<size_t>(in.weight[0])];
            const di_slot& out = slots_[static_cast<size_t>(in.out[0])];
            const int64_t rows = most_rows(out, desc_);
            if (w.is_quantized() || !large_.wants(rows)) continue;
            const bool plain = in.i[0] == 0 && in.weight[1] < 0;
            const LargeShape shape(w.desc.dtype, w.desc.n, w.k_padded, plain, in.in[1] >= 0, out.dtype);
            bytes = std::max(bytes, LargeProducts::scratch_bytes(shape.row_bytes(), rows));
        }
    if (bytes >= 0) large_.prepare(bytes);
}

int Program::make_flights(Why why) {
    for (int i = 0; i < kStepsInFlight; ++i) {
        auto flight = std::make_unique<Flight>(driver());
        if (const int bad = driver().check(driver().cuEventCreate(&flight->begin, 0), why, "an event")) return bad;
        if (const int bad = driver().check(driver().cuEventCreate(&flight->end, 0), why, "an event")) return bad;
        if (const int bad = flight->results.allocate(tops_at(2), why, "results")) return bad;
        flights_.push_back(std::move(flight));
    }
    return DI_OK;
}

void Program::plan_attention() {
    for (const di_instr& instr : body_) {
        plan_of_.push_back(-1);
        if (instr.op != DI_OP_ATTENTION) continue;
        const AttentionShape shape{instr.i[1] / instr.i[2], instr.i[2], instr.i[4]};
        size_t plan = 0;
        while (plan < plans_.size() && !(plans_[plan].shape() == shape)) ++plan;
        if (plan == plans_.size()) plans_.emplace_back(shape);
        plan_of_.back() = static_cast<int>(plan);
        part_row_bytes_ = std::max<int64_t>(part_row_bytes_, int64_t{4} * instr.i[2] * (padded_head(instr.i[3]) + 2));
    }
    if (part_row_bytes_) part_rows_ = std::min(kMostPartRows, static_cast<int64_t>(kPartBytes) / part_row_bytes_);
}

int Program::weight_write(int weight, int row0, int rows, const void* const* row_data, int source, Why why) {
    if (weight < 0 || static_cast<size_t>(weight) >= weights_.size())
        return why.fail(DI_EINVAL, "weight %d does not exist", weight);
    const Weight& w = weights_[static_cast<size_t>(weight)];
    if (w.desc.kind == DI_WEIGHT_VECTOR && rows == 1 && row_data[0])
        if (const int bad = check_order(weight, row_data[0], why)) return bad;
    const ContextScope scope(driver(), device_->context);
    return weights_[static_cast<size_t>(weight)].write(driver(), stream_, row0, rows, row_data, source, weight, why);
}

// The columns that a quantize takes: each within its input, none twice.
int Program::check_order(int weight, const void* values, Why why) const {
    for (const auto* list : {&body_, &tail_})
        for (const di_instr& in : *list) {
            if (in.op != DI_OP_QUANTIZE || in.weight[0] != weight) continue;
            const auto* order = static_cast<const int32_t*>(values);
            const int columns = slots_[static_cast<size_t>(in.in[0])].cols;
            std::vector<bool> seen(static_cast<size_t>(columns));
            for (int k = 0; k < in.i[0]; ++k) {
                if (order[k] < 0 || order[k] >= columns || seen[static_cast<size_t>(order[k])])
                    return why.fail(DI_EINVAL,
                                    "weight %d: column %d at place %d of the order; expected %d different of %d",
                                    weight, order[k], k, in.i[0], columns);
                seen[static_cast<size_t>(order[k])] = true;
            }
        }
    return DI_OK;
}

int Program::weight_write_codes(int weight, int row0, int rows, const uint8_t* const* codes, const float* const* scales,
                                const int16_t* const* zeros, Why why) {
    if (weight < 0 || static_cast<size_t>(weight) >= weights_.size())
        return why.fail(DI_EINVAL, "weight %d does not exist", weight);
    const ContextScope scope(driver(), device_->context);
    return weights_[static_cast<size_t>(weight)].write_codes(driver(), stream_, row0, rows, codes, scales, zeros,
                                                             weight, why);
}

}  // namespace di
