#include "check.h"

#include <cstdarg>
#include <cstdio>

namespace di {

namespace {

constexpr int kMaxRows = 1 << 20;
constexpr int64_t kMaxExpertRows = int64_t{1} << 24;

bool is_number(const di_slot& slot) { return slot.dtype == DI_F32 || slot.dtype == DI_BF16; }

// One instruction against the program: the first thing that does not fit becomes the reason.
class Checker {
  public:
    Checker(const di_instr& in, const std::vector<di_slot>& slots, const std::vector<Weight>& weights,
            const di_kv_desc& kv, int experts_per_token, Why why)
        : in_(in), slots_(slots), weights_(weights), kv_(kv), chosen_(experts_per_token), why_(why) {}

    int run(bool in_tail);

  private:
    void require(bool condition, const char* format, ...) __attribute__((format(printf, 3, 4))) {
        if (condition || bad_) return;
        char reason[256];
        va_list arguments;
        va_start(arguments, format);
        std::vsnprintf(reason, sizeof reason, format, arguments);
        va_end(arguments);
        bad_ = why_.fail(DI_EUNSUPPORTED, "instruction with code %d: %s", in_.op, reason);
    }

    // A slot that must be there; the first one stands in for a missing one.
    const di_slot& slot(int id) {
        require(id >= 0 && static_cast<size_t>(id) < slots_.size(), "slot %d does not exist", id);
        return bad_ ? slots_[0] : slots_[static_cast<size_t>(id)];
    }
    const di_slot& input(int i) { return slot(in_.in[i]); }
    const di_slot& output() { return slot(in_.out[0]); }

    const Weight& weight(int i) {
        static const Weight none{};
        const int id = in_.weight[i];
        require(id >= 0 && static_cast<size_t>(id) < weights_.size(), "weight %d does not exist", id);
        return bad_ ? none : weights_[static_cast<size_t>(id)];
    }
    const Weight& matrix(int i, bool or_table) {
        const Weight& w = weight(i);
        require(w.desc.kind == DI_WEIGHT_LINEAR || (or_table && w.desc.kind == DI_WEIGHT_TABLE),
                "weight %d is of the wrong kind", in_.weight[i]);
        return w;
    }
    void vector(int i, int n, bool optional) {
        if (optional && in_.weight[i] < 0) return;
        const Weight& w = weight(i);
        require(w.desc.kind == DI_WEIGHT_VECTOR && w.desc.n >= n, "weight %d is no vector of %d elements",
                in_.weight[i], n);
    }

    void place(bool in_tail);
    void planes();
    void operand(const di_slot& x, const Weight& w, int grid);
    void activation(int act);
    void embed();
    void rope_table();
    void norm();
    void linear();
    void quantize();
    void heads(const di_slot& x, int count, int size);
    void rotation(const di_slot& table, int rotary, int size, int style);
    void cache(int layer, int count, int size);
    void rope_kv();
    void attention();
    void route();
    void experts(int act, int grid);
    void pointwise(int inputs);
    void gate();
    void gather();
    void hidden();
    void sample();

    const di_instr& in_;
    const std::vector<di_slot>& slots_;
    const std::vector<Weight>& weights_;
    const di_kv_desc& kv_;
    const int chosen_;  // experts of a token
    Why why_;
    int bad_ = DI_OK;
};

int Checker::run(bool in_tail) {
    require(in_.op >= DI_OP_EMBED && in_.op <= DI_OP_HIDDEN, "unknown to this device");
    if (!bad_) place(in_tail);
    if (!bad_) planes();
    if (bad_) return bad_;
    switch (in_.op) {
        case DI_OP_EMBED:
            embed();
            break;
        case DI_OP_ROPE_TABLE:
            rope_table();
            break;
        case DI_OP_RMS_NORM:
        case DI_OP_LAYER_NORM:
            norm();
            break;
        case DI_OP_LINEAR:
            linear();
            break;
        case DI_OP_QUANTIZE:
            quantize();
            break;
        case DI_OP_HEAD_NORM:
            heads(input(0), in_.i[0], in_.i[1]);
            heads(output(), in_.i[0], in_.i[1]);
            vector(0, in_.i[1], false);
            break;
        case DI_OP_ROPE:
            heads(input(0), in_.i[0], in_.i[1]);
            heads(output(), in_.i[0], in_.i[1]);
            rotation(input(1), in_.i[2], in_.i[1], in_.i[3]);
            break;
        case DI_OP_KV_WRITE:
            heads(input(0), in_.i[1], in_.i[2]);
            heads(input(1), in_.i[1], in_.i[2]);
            cache(in_.i[0], in_.i[1], in_.i[2]);
            break;
        case DI_OP_ROPE_KV:
            rope_kv();
            break;
        case DI_OP_ATTENTION:
            attention();
            break;
        case DI_OP_MUL:
        case DI_OP_ADD:
            pointwise(2);
            break;
        case DI_OP_ROUTE:
            route();
            break;
        case DI_OP_EXPERT_LINEAR:
            experts(in_.i[1], in_.in[2]);
            break;
        case DI_OP_EXPERT_SUM:
            experts(DI_ACT_NONE, in_.in[3]);
            break;
        case DI_OP_GATE_ROWS:
            gate();
            break;
        case DI_OP_GATHER_ROWS:
            gather();
            break;
        case DI_OP_HIDDEN:
            hidden();
            break;
        case DI_OP_SAMPLE:
            sample();
            break;
        default:
            pointwise(1);
            break;
    }
    return bad_;
}

// The body works on token rows, or on those of experts, and knows tokens and caches; the tail works on tiles of logit
// rows, which it gathers first.
void Checker::place(bool in_tail) {
    const bool row_wise = in_.op == DI_OP_LINEAR || in_.op == DI_OP_QUANTIZE || in_.op == DI_OP_RMS_NORM ||
                          in_.op == DI_OP_LAYER_NORM || in_.op == DI_OP_GATE_ROWS ||
                          (in_.op >= DI_OP_ACT && in_.op <= DI_OP_CAST);
    const bool ends = in_.op == DI_OP_GATHER_ROWS || in_.op == DI_OP_HIDDEN || in_.op == DI_OP_SAMPLE;
    require(row_wise || ends == in_tail, "stands in the %s of the program", in_tail ? "tail" : "body");
    const bool experts = row_wise || in_.op == DI_OP_EXPERT_LINEAR || in_.op == DI_OP_EXPERT_SUM;
    static constexpr const char* kNames[] = {"body", "tail", "experts"};  // by di_rows
    const auto require_rows = [&](int id) {
        const di_slot& s = slot(id);
        require(in_tail ? s.rows == DI_ROWS_R : s.rows == DI_ROWS_T || (s.rows == DI_ROWS_E && experts),
                "slot %d has the rows of the %s", id, kNames[s.rows]);
    };
    for (int i = in_.op == DI_OP_GATHER_ROWS; i < DI_MAX_IN; ++i)
        if (in_.in[i] >= 0) require_rows(in_.in[i]);
    for (const int16_t out : in_.out)
        if (out >= 0) require_rows(out);
}

// Planes are made by one operation and multiplied by others; nothing else reads or writes bytes.
void Checker::planes() {
    const bool multiplies = in_.op == DI_OP_LINEAR || in_.op == DI_OP_EXPERT_LINEAR || in_.op == DI_OP_EXPERT_SUM;
    for (int i = multiplies; i < DI_MAX_IN; ++i)
        if (in_.in[i] >= 0) require(slot(in_.in[i]).dtype != DI_I8, "slot %d holds planes of integers", in_.in[i]);
    for (int i = in_.op == DI_OP_QUANTIZE; i < DI_MAX_OUT; ++i)
        if (in_.out[i] >= 0) require(slot(in_.out[i]).dtype != DI_I8, "slot %d holds planes of integers", in_.out[i]);
}

void Checker::embed() {
    const Weight& w = matrix(0, true);
    require(w.is_quantized() || w.desc.k_group == w.desc.k, "a table's columns are one group");
    require(output().dtype == DI_F32 && output().cols == (w.is_quantized() ? round_up(w.desc.k, kCell) : w.k_padded),
            "the output is no fp32 row of the table");
}

void Checker::rope_table() {
    const int kind = in_.i[0], half = in_.i[1];
    require(kind >= DI_ROPE_STATIC && kind <= DI_ROPE_PROMPT_NTK, "rope kind %d is unknown", kind);
    require(half <= kMaxHead / 2, "%d frequencies; at most %d", half, kMaxHead / 2);
    require(kind == DI_ROPE_STATIC || in_.i[2] >= 1, "an original context of %d tokens", in_.i[2]);
    require(kind == DI_ROPE_STATIC || kind == DI_ROPE_LONG || half > 1, "NTK scaling of one frequency");
    require(in_.i[7] == 0 || in_.i[7] > 1, "logn from %d tokens on", in_.i[7]);
    require(half >= 1 && output().dtype == DI_F32 && output().cols >= 2 * half, "%d columns for a table of 2 x %d",
            output().cols, half);
    vector(0, half, false);
    vector(1, half, kind != DI_ROPE_LONG);
}

void Checker::norm() {
    const di_slot& x = input(0);
    require(x.rows == output().rows && x.dtype == DI_F32 && is_number(output()) && x.cols == output().cols,
            "norms read fp32 and keep the columns");
    require(in_.i[0] >= 1 && in_.i[0] <= x.cols, "%d columns count of %d", in_.i[0], x.cols);
    vector(0, x.cols, false);
    vector(1, x.cols, true);
}

// What a matrix multiplies: numbers, or planes and their grid.
void Checker::operand(const di_slot& x, const Weight& w, int grid_id) {
    if (!w.is_quantized()) {
        require(x.cols == w.k_padded, "%d input columns meet %d of the weight", x.cols, w.k_padded);
        require(is_number(x) && (x.dtype == DI_BF16) == (w.desc.dtype == DI_BF16),
                "bf16 weights take bf16 activations, fp32 and fp16 weights fp32 ones");
        return;
    }
    require(x.dtype == DI_I8 && (x.cols == w.k_padded || x.cols == 2 * w.k_padded),
            "%d bytes a row are no one or two planes of %d", x.cols, w.k_padded);
    const di_slot& grid = slot(grid_id);
    require(grid.rows == x.rows, "inputs and outputs have different rows");
    require(grid.dtype == DI_F32 && grid.cols >= 2 * w.shape.groups, "no scales and sums of %d groups", w.shape.groups);
}

void Checker::activation(int act) {
    require(act >= 0 && (act & ~DI_ACT_MUL_BIT) <= DI_ACT_GELU_ERF, "activation %d is unknown", act);
}

void Checker::linear() {
    const di_slot &x = input(0), &y = output();
    const Weight& w = matrix(0, false);
    const int act = in_.i[0], columns = act & DI_ACT_MUL_BIT ? w.desc.n / 2 : w.desc.n;
    activation(act);
    require(x.rows == y.rows, "inputs and outputs have different rows");
    require(y.cols == columns, "%d output columns for %d of the weight", y.cols, columns);
    require(is_number(y), "products are fp32 or bf16");
    operand(x, w, in_.in[2]);
    vector(1, w.desc.n, true);
    if (in_.in[1] < 0) return;
    const di_slot& residual = input(1);
    require(residual.rows == y.rows, "inputs and outputs have different rows");
    require(residual.dtype == DI_F32 && residual.cols == y.cols, "the residual is no fp32 value of %d columns", y.cols);
}

void Checker::route() {
    const di_slot &x = input(0), &y = output();
    require(in_.i[0] >= 1 && in_.i[0] <= kMaxExperts && in_.i[1] == chosen_ && chosen_ >= 1 && chosen_ <= in_.i[0],
            "%d of %d experts (at most %d) in a program with %d a token", in_.i[1], in_.i[0], kMaxExperts, chosen_);
    require(x.rows == DI_ROWS_T && y.rows == DI_ROWS_T, "routing is of tokens");
    require(x.dtype == DI_F32 && x.cols >= in_.i[0], "no fp32 logits of %d experts", in_.i[0]);
    require(y.dtype == DI_F32 && y.cols >= 2 * chosen_, "no room for %d experts and their weights", chosen_);
}

void Checker::experts(int act, int grid) {
    const di_slot &x = input(0), &routing = input(1), &y = output();
    const Weight& w = matrix(0, false);
    const bool sums = in_.op == DI_OP_EXPERT_SUM, gated = (act & DI_ACT_MUL_BIT) != 0;
    require(x.rows == (sums ? DI_ROWS_E : DI_ROWS_T) && y.rows == (sums ? DI_ROWS_T : DI_ROWS_E),
            "rows of tokens and of experts are mixed up");
    require(routing.rows == DI_ROWS_T && routing.dtype == DI_F32 && chosen_ >= 1 && routing.cols >= 2 * chosen_,
            "no routing to %d experts a token", chosen_);
    activation(act);
    require(in_.i[0] >= 1 && in_.i[0] <= kMaxExperts && w.desc.n % in_.i[0] == 0 &&
                w.desc.n / in_.i[0] % (gated ? 2 * kCell : kCell) == 0,
            "%d rows of the weight are no %d experts (at most %d) of whole panels", w.desc.n, in_.i[0], kMaxExperts);
    if (bad_) return;
    const int columns = w.desc.n / in_.i[0] / (gated ? 2 : 1);
    require(y.cols == columns && is_number(y), "%d output columns for %d of an expert", y.cols, columns);
    operand(x, w, grid);
    if (!sums) return;
    require(y.dtype == DI_F32, "sums of experts are fp32");
    if (in_.in[2] < 0) return;
    const di_slot& residual = input(2);
    require(residual.rows == DI_ROWS_T && residual.dtype == DI_F32 && residual.cols == y.cols,
            "the residual is no fp32 value of %d columns", y.cols);
}

void Checker::quantize() {
    const di_slot &x = input(0), &y = output(), &grid = slot(in_.out[1]);
    const int k = in_.i[0], group = in_.i[1], planes = in_.i[2], head = in_.i[3], padded = in_.i[4];
    require(k >= 1 && k <= kMaxColumns && group >= 1 && group <= k && (planes == 1 || planes == 2),
            "%d columns in groups of %d, %d planes", k, group, planes);
    if (bad_) return;
    const int groups = (k + group - 1) / group;
    require(is_number(x) && y.dtype == DI_I8 && y.cols == planes * groups * round_up(group, kQuantCell),
            "%d bytes a row for %d groups", y.cols, groups);
    require(grid.dtype == DI_F32 && grid.cols >= 2 * groups, "no room for the scales and sums of %d groups", groups);
    require(groups <= 65535, "%d groups; at most 65535", groups);
    require(head == 0 ? x.cols >= k : head > 0 && padded >= head && k % head == 0 && x.cols / padded >= k / head,
            "%d columns hold no %d, in heads of %d padded to %d", x.cols, k, head, padded);
    require(in_.weight[0] < 0 || head == 0, "an order of columns that lie in heads names them with their padding");
    require(x.rows == y.rows && grid.rows == y.rows, "inputs and outputs have different rows");
    vector(0, k, true);
}

void Checker::heads(const di_slot& x, int count, int size) {
    require(count >= 1 && size >= 2 && size % 2 == 0 && size <= kMaxHead,
            "%d heads of %d columns; head sizes are even, 2 to %d", count, size, kMaxHead);
    require(x.dtype == DI_F32 && x.cols == count * round_up(size, kCell),
            "%d columns are not %d padded heads of %d, in fp32", x.cols, count, size);
}

void Checker::rotation(const di_slot& table, int rotary, int size, int style) {
    require(rotary >= 2 && rotary <= size && rotary % 2 == 0, "%d rotary columns of %d", rotary, size);
    require(table.dtype == DI_F32 && table.cols >= rotary, "the rope table has %d columns for %d", table.cols, rotary);
    require(style == DI_ROPE_NEOX || style == DI_ROPE_INTERLEAVED, "rope style %d is unknown", style);
}

void Checker::cache(int layer, int count, int size) {
    require(layer >= 0 && layer < kv_.layers && count == kv_.heads && size == kv_.head_size,
            "layer %d with %d heads of %d does not fit the KV cache (%d layers, %d heads of %d)", layer, count, size,
            kv_.layers, kv_.heads, kv_.head_size);
}

void Checker::rope_kv() {
    const int size = in_.i[3];
    heads(output(), in_.i[1], size);
    heads(input(0), in_.i[1], size);
    heads(input(1), in_.i[2], size);
    heads(input(2), in_.i[2], size);
    if (in_.in[3] >= 0) rotation(input(3), in_.i[4], size, in_.i[5]);
    cache(in_.i[0], in_.i[2], size);
    vector(0, size, true);
    vector(1, size, true);
}

void Checker::attention() {
    const int q_heads = in_.i[1], kv_heads = in_.i[2];
    heads(input(0), q_heads, in_.i[3]);
    require(is_number(output()) && output().cols == input(0).cols, "%d output columns for %d of the queries",
            output().cols, input(0).cols);
    require(kv_heads >= 1 && q_heads % kv_heads == 0, "%d query heads on %d key heads", q_heads, kv_heads);
    require(in_.i[4] >= 0, "window %d", in_.i[4]);
    cache(in_.i[0], kv_heads, in_.i[3]);
    vector(0, q_heads, true);
    vector(1, q_heads, true);
}

void Checker::pointwise(int inputs) {
    for (int i = 0; i < inputs; ++i)
        require(input(i).rows == output().rows && input(i).cols == output().cols && is_number(input(i)) &&
                    is_number(output()),
                "columns differ");
    if (in_.op == DI_OP_ACT)
        require(in_.i[0] >= DI_ACT_NONE && in_.i[0] <= DI_ACT_GELU_ERF, "activation %d is unknown", in_.i[0]);
}

void Checker::gate() {
    const di_slot &x = input(0), &gates = input(1), &y = output();
    require(x.rows == y.rows && gates.rows == y.rows, "inputs and outputs have different rows");
    require(x.cols == y.cols && is_number(x) && is_number(y), "columns differ");
    require(gates.dtype == DI_F32, "gates are fp32");
}

void Checker::gather() {
    require(input(0).rows == DI_ROWS_T, "gathers token rows into logit rows");
    require(input(0).cols == output().cols && input(0).dtype == output().dtype && is_number(output()),
            "columns or types differ");
}

void Checker::hidden() {
    const di_slot& x = input(0);
    require(x.dtype == DI_F32 && in_.i[0] >= 1 && in_.i[0] <= x.cols, "%d columns of %d fp32 ones", in_.i[0], x.cols);
}

void Checker::sample() {
    require(input(0).dtype == DI_F32 && in_.i[0] >= 1 && in_.i[0] <= input(0).cols,
            "%d tokens in %d fp32 logit columns", in_.i[0], input(0).cols);
}

}  // namespace

int check_limits(const di_program_desc& d, Why why) {
    if (d.n_slots < 1 || d.n_slots > 32767 || d.n_weights < 0 || d.n_body < 1 || d.n_tail < 0)
        return why.fail(DI_EINVAL, "program: bad counts (%d slots, %d weights, %d instructions)", d.n_slots,
                        d.n_weights, d.n_body);
    const auto in_range = [](int x, int least, int most) { return x >= least && x <= most; };
    if (!in_range(d.max_tokens, 1, kMaxRows) || !in_range(d.tail_rows, 1, kMaxRows) ||
        !in_range(d.max_seqs, 1, kMaxRows) || !in_range(d.max_logprobs, 0, kMaxTop) || d.arena_bytes < 0)
        return why.fail(DI_EINVAL, "program: bad limits (%d tokens, %d tail rows, %d sequences, %d logprobs)",
                        d.max_tokens, d.tail_rows, d.max_seqs, d.max_logprobs);
    if (d.experts_per_token < 0 || d.experts_per_token > kMaxExperts ||
        int64_t{d.max_tokens} * d.experts_per_token > kMaxExpertRows)
        return why.fail(DI_EINVAL, "program: bad limits (%d experts for each of %d tokens)", d.experts_per_token,
                        d.max_tokens);
    return DI_OK;
}

int64_t most_rows(const di_slot& slot, const di_program_desc& d) {
    if (slot.rows == DI_ROWS_R) return d.tail_rows;
    return slot.rows == DI_ROWS_E ? int64_t{d.max_tokens} * d.experts_per_token : d.max_tokens;
}

int check_slots(const di_program_desc& d, Why why) {
    for (int i = 0; i < d.n_slots; ++i) {
        const di_slot& s = d.slots[i];
        if (!is_number(s) && s.dtype != DI_I8)
            return why.fail(DI_EUNSUPPORTED, "slot %d: activations are fp32 or bf16", i);
        if (s.rows > DI_ROWS_E || (s.rows == DI_ROWS_E && d.experts_per_token == 0))
            return why.fail(DI_EUNSUPPORTED, "slot %d: rows of kind %d in a program with %d experts a token", i, s.rows,
                            d.experts_per_token);
        if (s.cols < kCell || s.cols % kCell || s.first_col % kCell || s.first_col < 0 || s.cols > kMaxColumns ||
            s.first_col > kMaxColumns)
            return why.fail(DI_EUNSUPPORTED, "slot %d: columns %d at %d are not multiples of %d", i, s.cols,
                            s.first_col, kCell);
        if (s.parent >= 0) {
            if (s.parent >= d.n_slots || d.slots[s.parent].parent >= 0)
                return why.fail(DI_EUNSUPPORTED, "slot %d: its parent %d is not a slot of its own", i, s.parent);
            const di_slot& p = d.slots[s.parent];
            if (p.rows != s.rows || p.dtype != s.dtype || s.dtype == DI_I8 || s.first_col + s.cols > p.cols)
                return why.fail(DI_EUNSUPPORTED, "slot %d: does not fit its parent %d", i, s.parent);
            continue;
        }
        const int64_t rows = round_up(most_rows(s, d), kCell);
        const int64_t bytes = rows * s.cols * static_cast<int64_t>(size_of(s.dtype));
        if (s.offset < 0 || s.offset % 64 || s.offset > d.arena_bytes - bytes)
            return why.fail(DI_EUNSUPPORTED, "slot %d: lies outside the arena", i);
    }
    return DI_OK;
}

int check_cache(const di_kv_desc& kv, Why why) {
    if (kv.layers <= 0) return DI_OK;
    const bool known = kv.dtype <= DI_BF16 || kv.dtype == DI_U8 || kv.dtype == DI_U4;
    if (kv.heads < 1 || kv.heads > 65535 || kv.head_size < 1 || kv.head_size > kMaxHead || kv.block_tokens < kCell ||
        kv.block_tokens % kCell || kv.blocks < 1 || !known)
        return why.fail(DI_EUNSUPPORTED,
                        "kv cache: heads of 1 to %d columns, blocks of a multiple of %d tokens, 32, 16, 8 or 4 bit",
                        kMaxHead, kCell);
    if (int64_t{kv.blocks} * kv.block_tokens > INT32_MAX)
        return why.fail(DI_EUNSUPPORTED, "kv cache: %d blocks of %d tokens are more than 2^31 tokens", kv.blocks,
                        kv.block_tokens);
    return DI_OK;
}

int check_instr(const di_instr& in, bool in_tail, const std::vector<di_slot>& slots, const std::vector<Weight>& weights,
                const di_kv_desc& kv, int experts_per_token, Why why) {
    return Checker(in, slots, weights, kv, experts_per_token, why).run(in_tail);
}

static int check_swaps(int n, const int32_t* swaps, const StepLimits& limits, Why why) {
    for (int i = 0; i < n; ++i)
        if (limits.kv.layers <= 0 || swaps[2 * i] < 0 || swaps[2 * i] >= limits.kv.blocks || swaps[2 * i + 1] < 0 ||
            swaps[2 * i + 1] >= limits.host_blocks)
            return why.fail(DI_EINVAL, "step: swapped block does not exist");
    return DI_OK;
}

int check_step(const di_step& step, const StepLimits& limits, Why why) {
    if (step.T < 1 || step.T > limits.tokens || step.B < 1 || step.B > limits.seqs || step.R < 0 ||
        step.R > limits.tokens)
        return why.fail(DI_EINVAL,
                        "step: %d tokens, %d sequences, %d logit rows; the program has %d tokens and %d sequences",
                        step.T, step.B, step.R, limits.tokens, limits.seqs);
    if (step.position_rows < 1 || step.position_rows > 3 || step.position_stride < step.T)
        return why.fail(DI_EINVAL, "step: %d position rows of %d", step.position_rows, step.position_stride);
    if (step.q_offset[0] != 0 || step.q_offset[step.B] != step.T)
        return why.fail(DI_EINVAL, "step: sequences do not cover the tokens");
    for (int b = 0; b < step.B; ++b) {
        const int64_t tokens = int64_t{step.q_offset[b + 1]} - step.q_offset[b];
        if (tokens < 1 || step.kv_len[b] < tokens)
            return why.fail(DI_EINVAL, "step: sequence %d has %lld new of %d tokens", b, static_cast<long long>(tokens),
                            step.kv_len[b]);
        if (limits.kv.layers <= 0) continue;
        const int blocks = (step.kv_len[b] - 1) / limits.kv.block_tokens + 1;
        if (blocks > step.max_blocks)
            return why.fail(DI_EINVAL, "step: sequence %d needs %d blocks of %d", b, blocks, step.max_blocks);
        const int32_t* table = step.block_table + int64_t{b} * step.max_blocks;
        for (int i = 0; i < blocks; ++i)
            if (table[i] < 0 || table[i] >= limits.kv.blocks)
                return why.fail(DI_EINVAL, "step: block %d does not exist", table[i]);
    }
    for (int t = 0; t < step.T; ++t)
        if (step.tokens[t] < -limits.last_tokens)
            return why.fail(DI_EINVAL, "step: token %d takes a sequence slot that does not exist", t);
    for (int r = 0; r < step.R; ++r)
        if (step.logit_row[r] < 0 || step.logit_row[r] >= step.T || step.sample[r].slot >= limits.last_tokens)
            return why.fail(DI_EINVAL, "step: logit row %d is out of range", r);
    for (int i = 0; i < step.n_clear; ++i)
        if (limits.kv.layers <= 0 || step.clear_blocks[i] < 0 || step.clear_blocks[i] >= limits.kv.blocks)
            return why.fail(DI_EINVAL, "step: cleared block does not exist");
    if (const int bad = check_swaps(step.n_swap_out, step.swap_out, limits, why)) return bad;
    if (const int bad = check_swaps(step.n_swap_in, step.swap_in, limits, why)) return bad;
    for (int i = 0; i < step.n_external; ++i)
        if (step.external_row[i] < 0 || step.external_row[i] >= step.T ||
            (i && step.external_row[i] <= step.external_row[i - 1]))
            return why.fail(DI_EINVAL, "step: external rows must ascend within the step");
    return DI_OK;
}

}  // namespace di
