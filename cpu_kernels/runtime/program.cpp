#include "program.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>

namespace di {

namespace {

constexpr size_t kWeightAlign = 4096;
constexpr int64_t kMaxRows = int64_t{1} << 20;
constexpr int64_t kMaxExpertRows = int64_t{1} << 24;

bool fail(char* why, size_t why_bytes, const char* format, ...) __attribute__((format(printf, 3, 4)));
bool fail(char* why, size_t why_bytes, const char* format, ...) {
    va_list args;
    va_start(args, format);
    std::vsnprintf(why, why_bytes, format, args);
    va_end(args);
    return false;
}

size_t align_up(size_t x, size_t to) { return (x + to - 1) / to * to; }

int band_rows(int rows) { return rows <= kCell ? rows : round_up(rows, kCell); }

}  // namespace

int Program::most_rows(const di_slot& slot) const {
    return slot.rows == DI_ROWS_R   ? tail_rows_
           : slot.rows == DI_ROWS_E ? max_tokens_ * experts_per_token_
                                    : max_tokens_;
}

View Program::view(int id, int rows) const {
    const di_slot& slot = slots_[static_cast<size_t>(id)];
    const di_slot& root = slot.parent < 0 ? slot : slots_[static_cast<size_t>(slot.parent)];
    return View{static_cast<uint8_t*>(arena_memory_.data) + root.offset,
                rows,
                slot.cols,
                root.cols / kCell,
                slot.first_col / kCell,
                static_cast<DType>(slot.dtype)};
}

View Run::view(int id) const {
    if (id < 0) return View{nullptr, 0, 0, 0, 0, DType::F32};
    return program.view(id, rows(program.slots_[static_cast<size_t>(id)]));
}

float* Run::scratch() const {
    return reinterpret_cast<float*>(static_cast<uint8_t*>(program.scratch_memory_.data) +
                                    static_cast<size_t>(thread) * program.scratch_stride_);
}

ExpertSpace::Parts Run::expert_memory() const {
    return program.expert_space_.at(reinterpret_cast<uint8_t*>(scratch()) + program.expert_memory_);
}

// ---- Creation ----

Program* Program::create(CpuDevice* device, const di_program_desc& desc, char* why, size_t why_bytes) {
    auto* program = new (std::nothrow) Program(device);
    if (!program) return fail(why, why_bytes, "out of memory"), nullptr;
    if (program->prepare(desc, why, why_bytes)) return program;
    delete program;
    return nullptr;
}

bool Program::prepare(const di_program_desc& desc, char* why, size_t why_bytes) {
    if (desc.n_slots < 1 || desc.n_slots > 32767 || desc.n_weights < 0 || desc.n_body < 1 || desc.n_tail < 0)
        return fail(why, why_bytes, "program: bad counts (%d slots, %d weights, %d instructions)", desc.n_slots,
                    desc.n_weights, desc.n_body);
    if (desc.max_tokens < 1 || desc.max_tokens > kMaxRows || desc.tail_rows < 1 || desc.tail_rows > kMaxRows ||
        desc.max_seqs < 1 || desc.max_seqs > kMaxRows || desc.max_logprobs < 0 || desc.max_logprobs > 4096)
        return fail(why, why_bytes, "program: bad limits (%d tokens, %d tail rows, %d sequences, %d logprobs)",
                    desc.max_tokens, desc.tail_rows, desc.max_seqs, desc.max_logprobs);
    if (desc.experts_per_token < 0 || desc.experts_per_token > kMaxExperts ||
        int64_t{desc.max_tokens} * desc.experts_per_token > kMaxExpertRows)
        return fail(why, why_bytes, "program: bad limits (%d experts for each of %d tokens)", desc.experts_per_token,
                    desc.max_tokens);
    if (desc.host_blocks != 0)
        return fail(why, why_bytes, "program: %d host blocks; the KV cache lies in host memory as it is",
                    desc.host_blocks);
    max_tokens_ = desc.max_tokens;
    experts_per_token_ = desc.experts_per_token;
    tail_rows_ = desc.tail_rows;
    max_seqs_ = desc.max_seqs;
    max_logprobs_ = desc.max_logprobs;
    kv_desc_ = desc.kv;
    slots_.assign(desc.slots, desc.slots + desc.n_slots);
    body_.assign(desc.instrs, desc.instrs + desc.n_body);
    tail_.assign(desc.instrs + desc.n_body, desc.instrs + desc.n_body + desc.n_tail);

    for (size_t i = 0; i < slots_.size(); ++i) {
        const di_slot& s = slots_[i];
        const bool is_view = s.parent >= 0;
        if (s.dtype != DI_F32 && s.dtype != DI_BF16 && s.dtype != DI_I8)
            return fail(why, why_bytes, "slot %zu: activations are fp32 or bf16", i);
        if (s.rows > DI_ROWS_E || (s.rows == DI_ROWS_E && experts_per_token_ == 0))
            return fail(why, why_bytes, "slot %zu: rows of kind %d in a program with %d experts a token", i, s.rows,
                        experts_per_token_);
        if (s.cols < kCell || s.cols % kCell || s.first_col % kCell || s.first_col < 0 || s.cols > (1 << 24))
            return fail(why, why_bytes, "slot %zu: columns %d at %d are not multiples of %d", i, s.cols, s.first_col,
                        kCell);
        if (is_view) {
            if (static_cast<size_t>(s.parent) >= slots_.size() || slots_[static_cast<size_t>(s.parent)].parent >= 0)
                return fail(why, why_bytes, "slot %zu: its parent %d is not a slot of its own", i, s.parent);
            const di_slot& p = slots_[static_cast<size_t>(s.parent)];
            if (p.rows != s.rows || p.dtype != s.dtype || s.dtype == DI_I8 || s.first_col + s.cols > p.cols)
                return fail(why, why_bytes, "slot %zu: does not fit its parent %d", i, s.parent);
        } else {
            const int64_t rows = band_rows(most_rows(s));
            const int64_t bytes = rows * s.cols * static_cast<int64_t>(size_of(static_cast<DType>(s.dtype)));
            if (s.offset < 0 || s.offset % 64 || s.offset + bytes > desc.arena_bytes)
                return fail(why, why_bytes, "slot %zu: lies outside the arena", i);
        }
    }

    size_t bytes = 0;
    for (int i = 0; i < desc.n_weights; ++i) {
        Weight w;
        if (!w.describe(desc.weights[i], i, why, why_bytes)) return false;
        weights_.push_back(w);
        bytes = align_up(bytes, kWeightAlign) + w.bytes();
    }
    if (!os_map(std::max<size_t>(bytes, 1), true, &weight_memory_))
        return fail(why, why_bytes, "no memory for %zu bytes of weights", bytes);
    bytes = 0;
    for (Weight& w : weights_) {
        bytes = align_up(bytes, kWeightAlign);
        w.place(static_cast<uint8_t*>(weight_memory_.data) + bytes);
        bytes += w.bytes();
    }

    const di_kv_desc& kv = kv_desc_;
    if (kv.layers > 0) {
        if (kv.heads < 1 || kv.head_size < 1 || kv.head_size > kMaxHead || kv.block_tokens < kCell ||
            kv.block_tokens % kCell || kv.blocks < 1 ||
            (kv.dtype != DI_F32 && kv.dtype != DI_BF16 && kv.dtype != DI_U8 && kv.dtype != DI_U4))
            return fail(why, why_bytes,
                        "kv cache: heads of 1 to %d columns, blocks of a multiple of %d tokens, fp32, bf16, 8 or 4 bit",
                        kMaxHead, kCell);
        kv_ = KvLayout{
            nullptr, kv.layers, kv.heads, round_up(kv.head_size, kCell), kv.block_tokens, static_cast<DType>(kv.dtype)};
        if (!os_map(kv_.block_bytes() * static_cast<size_t>(kv.blocks), true, &kv_memory_))
            return fail(why, why_bytes, "no address space for %d KV blocks of %zu bytes", kv.blocks, kv_.block_bytes());
        kv_.pool = static_cast<uint8_t*>(kv_memory_.data);
        touched_.assign(static_cast<size_t>(kv.blocks), false);
    }

    for (const auto* list : {&body_, &tail_})
        for (const di_instr& instr : *list)
            if (!check_instr(instr, list == &tail_, slots_, weights_, kv_desc_, experts_per_token_, why, why_bytes))
                return false;
    for (const di_instr& instr : tail_) {
        if (instr.op != DI_OP_SAMPLE) continue;
        if (vocab_) return fail(why, why_bytes, "program: more than one instruction samples");
        vocab_ = instr.i[0];
    }

    if (!os_map(static_cast<size_t>(std::max<int64_t>(desc.arena_bytes, 64)), true, &arena_memory_))
        return fail(why, why_bytes, "no memory for %lld bytes of activations",
                    static_cast<long long>(desc.arena_bytes));

    const int threads = device_->team->threads();
    const size_t floats =
        std::max({Gemm::scratch_floats(), attention_scratch_floats(), static_cast<size_t>(vocab_) + 64});
    for (const di_instr& instr : body_) expert_space_.include(instr, slots_, max_tokens_, experts_per_token_);
    expert_memory_ = align_up(floats * sizeof(float), 64);
    scratch_stride_ = align_up(expert_memory_ + expert_space_.bytes(), size_t{1} << 21);
    if (!os_map(scratch_stride_ * static_cast<size_t>(threads), true, &scratch_memory_))
        return fail(why, why_bytes, "no memory for scratch");

    last_token_.assign(static_cast<size_t>(max_seqs_) * 2, 0);
    for (auto* list : {&token_, &block_of_, &offset_of_, &prompt_len_of_})
        list->assign(static_cast<size_t>(max_tokens_), 0);
    plan_of_.assign(body_.size(), -1);
    for (size_t i = 0; i < body_.size(); ++i) {
        if (body_[i].op != DI_OP_ATTENTION) continue;
        const AttentionShape shape{body_[i].i[1], body_[i].i[2], round_up(body_[i].i[3], kCell), body_[i].i[4]};
        size_t p = 0;
        while (p < plans_.size() && !(plans_[p].shape() == shape)) ++p;
        if (p == plans_.size()) plans_.emplace_back(shape);
        plan_of_[i] = static_cast<int>(p);
    }
    const size_t instructions = body_.size() + tail_.size();
    counters_.reset(new (std::nothrow) Counter[instructions * 2]);
    hands_.reset(new (std::nothrow) Hand[instructions * static_cast<size_t>(threads)]);
    if (!counters_ || !hands_) return fail(why, why_bytes, "out of memory");
    if (vocab_ > 0) {
        sampler_scratch_.resize(static_cast<size_t>(threads));
        for (SamplerScratch& scratch : sampler_scratch_)
            if (!scratch.create(vocab_, max_logprobs_))
                return fail(why, why_bytes, "no memory for sampling %d tokens", vocab_);
    }
    return true;
}

bool Program::accepts(int id, const void* values, char* why, size_t why_bytes) const {
    for (const auto* list : {&body_, &tail_}) {
        for (const di_instr& in : *list) {
            if (in.op != DI_OP_QUANTIZE || in.weight[0] != id) continue;
            const auto* order = static_cast<const int32_t*>(values);
            const int columns = slots_[static_cast<size_t>(in.in[0])].cols;
            std::vector<bool> seen(static_cast<size_t>(columns));
            for (int k = 0; k < in.i[0]; ++k) {
                if (order[k] < 0 || order[k] >= columns || seen[static_cast<size_t>(order[k])])
                    return fail(why, why_bytes,
                                "weight %d: column %d at place %d of the order; expected %d different of %d", id,
                                order[k], k, in.i[0], columns);
                seen[static_cast<size_t>(order[k])] = true;
            }
        }
    }
    return true;
}

Program::~Program() {
    os_unmap(&weight_memory_);
    os_unmap(&kv_memory_);
    os_unmap(&arena_memory_);
    os_unmap(&scratch_memory_);
}

// ---- A step ----

int Program::check(const di_step& step, char* why, size_t why_bytes) const {
    if (step.T < 1 || step.T > max_tokens_ || step.B < 1 || step.B > max_seqs_ || step.R < 0)
        return fail(why, why_bytes,
                    "step: %d tokens, %d sequences, %d logit rows; the program has %d tokens and %d sequences", step.T,
                    step.B, step.R, max_tokens_, max_seqs_),
               DI_EINVAL;
    if (step.position_rows < 1 || step.position_rows > 3 || step.position_stride < step.T)
        return fail(why, why_bytes, "step: %d position rows of %d", step.position_rows, step.position_stride),
               DI_EINVAL;
    if (step.q_offset[0] != 0 || step.q_offset[step.B] != step.T)
        return fail(why, why_bytes, "step: sequences do not cover the tokens"), DI_EINVAL;
    for (int b = 0; b < step.B; ++b) {
        const int tokens = step.q_offset[b + 1] - step.q_offset[b];
        if (tokens < 1 || step.kv_len[b] < tokens)
            return fail(why, why_bytes, "step: sequence %d has %d new of %d tokens", b, tokens, step.kv_len[b]),
                   DI_EINVAL;
        if (kv_.layers == 0) continue;
        const int blocks = (step.kv_len[b] - 1) / kv_.block_tokens + 1;
        if (blocks > step.max_blocks)
            return fail(why, why_bytes, "step: sequence %d needs %d blocks of %d", b, blocks, step.max_blocks),
                   DI_EINVAL;
        const int32_t* table = step.block_table + static_cast<size_t>(b) * step.max_blocks;
        for (int i = 0; i < blocks; ++i)
            if (table[i] < 0 || table[i] >= kv_desc_.blocks)
                return fail(why, why_bytes, "step: block %d does not exist", table[i]), DI_EINVAL;
    }
    const int slots = static_cast<int>(last_token_.size());
    for (int t = 0; t < step.T; ++t)
        if (step.tokens[t] < -slots)
            return fail(why, why_bytes, "step: token %d takes a sequence slot that does not exist", t), DI_EINVAL;
    for (int r = 0; r < step.R; ++r)
        if (step.logit_row[r] < 0 || step.logit_row[r] >= step.T || step.sample[r].slot >= slots)
            return fail(why, why_bytes, "step: logit row %d is out of range", r), DI_EINVAL;
    for (int i = 0; i < step.n_clear; ++i)
        if (step.clear_blocks[i] < 0 || static_cast<size_t>(step.clear_blocks[i]) >= touched_.size())
            return fail(why, why_bytes, "step: cleared block does not exist"), DI_EINVAL;
    if (step.n_swap_out != 0 || step.n_swap_in != 0)
        return fail(why, why_bytes, "step: swapped block does not exist"), DI_EINVAL;
    for (int i = 0; i < step.n_external; ++i)
        if (step.external_row[i] < 0 || step.external_row[i] >= step.T ||
            (i && step.external_row[i] <= step.external_row[i - 1]))
            return fail(why, why_bytes, "step: external rows must ascend within the step"), DI_EINVAL;
    return DI_OK;
}

void Program::index_tokens(const di_step& step) {
    for (int b = 0; b < step.B; ++b) {
        const int begin = step.q_offset[b], end = step.q_offset[b + 1];
        const int base = step.kv_len[b] - (end - begin);
        const int32_t* table = step.block_table + static_cast<size_t>(b) * step.max_blocks;
        for (int t = begin; t < end; ++t) {
            const size_t i = static_cast<size_t>(t);
            const int32_t token = step.tokens[t], at = base + t - begin;
            token_[i] = token < 0 ? last_token_[static_cast<size_t>(-1 - token)] : token;
            prompt_len_of_[i] = step.prompt_len[b];
            if (kv_.layers == 0) continue;
            block_of_[i] = table[at / kv_.block_tokens];
            offset_of_[i] = at % kv_.block_tokens;
        }
    }
    for (int i = 0; i < step.n_clear; ++i) {
        const size_t block = static_cast<size_t>(step.clear_blocks[i]);
        if (!touched_[block]) touched_[block] = true, ++blocks_touched_;
    }
}

void Program::plan_attention(const di_step& step) {
    for (AttentionPlan& plan : plans_) plan.build(step, device_->team->threads());
    reset_counters(0);
}

void Program::reset_counters(size_t from) {
    for (size_t i = from * 2; i < (body_.size() + tail_.size()) * 2; ++i) counters_[i].reset();
}

// The first of so many rounds of the hands, which know a round by its last digits and are cleared before those repeat.
uint64_t Program::begin_rounds(uint64_t count) {
    if (round_ % Hand::kRounds + count > Hand::kRounds) {
        round_ = (round_ / Hand::kRounds + 1) * Hand::kRounds;
        const size_t hands = (body_.size() + tail_.size()) * static_cast<size_t>(device_->team->threads());
        for (size_t i = 0; i < hands; ++i) hands_[i].clear();
    }
    const uint64_t first = round_;
    round_ += count;
    return first;
}

int Program::run(const di_step& step, char* why, size_t why_bytes) {
    if (const int bad = check(step, why, why_bytes)) return bad;
    const uint64_t start = os_now_ns();
    index_tokens(step);
    plan_attention(step);
    struct Context {
        Program* program;
        const di_step* step;
        uint64_t round;
    } context{this, &step, begin_rounds(1 + static_cast<uint64_t>(step.R))};  // of the body, and of tiles of the tail
    const auto work = [](void* opaque, int thread, int threads) {
        auto& c = *static_cast<Context*>(opaque);
        Program& program = *c.program;
        Run run{program, *program.device_->kernels, *c.step, thread, threads, c.round};
        const bool timed = program.profiling_ && thread == 0;
        const auto execute = [&](const std::vector<di_instr>& list, size_t first) {
            for (size_t i = 0; i < list.size(); ++i) {
                const uint64_t before = timed ? os_now_ns() : 0;
                op_function(list[i].op)(run, list[i], static_cast<int>(first + i));
                if (list[i].flags & DI_INSTR_SYNC) run.barrier();
                if (timed) program.op_ns_[list[i].op] += static_cast<int64_t>(os_now_ns() - before);
                if (list[i].op == DI_OP_HIDDEN && run.wants_no_tokens()) return;
            }
        };
        if (c.step->n_clear > 0) {
            const Range blocks = share(c.step->n_clear, thread, threads);
            for (int i = blocks.begin; i < blocks.end; ++i)
                std::memset(program.kv_.k(c.step->clear_blocks[i], 0, 0), 0, program.kv_.block_bytes());
            run.barrier();
        }
        execute(program.body_, 0);
        for (int row = 0; row < c.step->R && !program.tail_.empty(); row += program.tail_rows_) {
            run.tail_row = row;
            run.tail_count = std::min(program.tail_rows_, c.step->R - row);
            if (row > 0) {
                run.barrier();
                if (thread == 0) program.reset_counters(program.body_.size());
                run.barrier();
            }
            ++run.round;
            execute(program.tail_, program.body_.size());
        }
        if (run.kernels.release) run.kernels.release();
    };
    TurnGuard turn(device_->team->threads());
    if (!device_->team->run(work, &context, why, why_bytes)) return DI_EDEAD;
    last_step_ns_ = static_cast<int64_t>(os_now_ns() - start);
    return DI_OK;
}

// ---- Access from outside a step ----

int Program::kv_move(bool to_host, int n, const int32_t* blocks, void* const* host) {
    for (int i = 0; i < n; ++i) {
        if (blocks[i] < 0 || blocks[i] >= kv_desc_.blocks) return DI_EINVAL;
        uint8_t* data = kv_.k(blocks[i], 0, 0);
        if (to_host)
            std::memcpy(host[i], data, kv_.block_bytes());
        else
            std::memcpy(data, host[i], kv_.block_bytes());
    }
    return DI_OK;
}

namespace {

float widen(bf16 x) {
    const uint32_t bits = static_cast<uint32_t>(x) << 16;
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}

bf16 narrow(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<bf16>((bits >> 16) | 0x40u);
    return static_cast<bf16>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

}  // namespace

int Program::slot_write(int slot, int rows, const float* data) {
    if (slot < 0 || static_cast<size_t>(slot) >= slots_.size() || rows < 1 ||
        slots_[static_cast<size_t>(slot)].dtype == DI_I8)
        return DI_EINVAL;
    const di_slot& s = slots_[static_cast<size_t>(slot)];
    if (rows > most_rows(s)) return DI_EINVAL;
    const View view = this->view(slot, rows);
    for (int m = 0; m < rows; ++m)
        for (int c = 0; c < s.cols; ++c) {
            const size_t at = static_cast<size_t>(c / kCell) * view.step() + static_cast<size_t>(c % kCell);
            const float x = data[static_cast<size_t>(m) * static_cast<size_t>(s.cols) + static_cast<size_t>(c)];
            if (view.dtype == DType::F32)
                view.row<float>(m)[at] = x;
            else
                view.row<bf16>(m)[at] = narrow(x);
        }
    return DI_OK;
}

int Program::slot_read(int slot, int rows, float* data) {
    if (slot < 0 || static_cast<size_t>(slot) >= slots_.size() || rows < 1 ||
        slots_[static_cast<size_t>(slot)].dtype == DI_I8)
        return DI_EINVAL;
    const di_slot& s = slots_[static_cast<size_t>(slot)];
    if (rows > most_rows(s)) return DI_EINVAL;
    const View view = this->view(slot, rows);
    for (int m = 0; m < rows; ++m)
        for (int c = 0; c < s.cols; ++c) {
            const size_t at = static_cast<size_t>(c / kCell) * view.step() + static_cast<size_t>(c % kCell);
            data[static_cast<size_t>(m) * static_cast<size_t>(s.cols) + static_cast<size_t>(c)] =
                view.dtype == DType::F32 ? view.row<float>(m)[at] : widen(view.row<bf16>(m)[at]);
        }
    return DI_OK;
}

void Program::stats(di_stats* out) const {
    const uint32_t size = out->struct_size;
    *out = di_stats{};
    out->struct_size = size;
    for (const Weight& w : weights_) out->weight_bytes += static_cast<int64_t>(w.bytes());
    out->kv_bytes = blocks_touched_ * static_cast<int64_t>(kv_.layers ? kv_.block_bytes() : 0);
    out->arena_bytes = static_cast<int64_t>(arena_memory_.bytes);
    out->last_step_ns = last_step_ns_;
    std::copy(std::begin(op_ns_), std::end(op_ns_), out->op_ns);
}

}  // namespace di
