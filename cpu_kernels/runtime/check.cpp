// What a program must satisfy before its first step: afterwards no instruction looks at shapes again.
#include <cstdarg>
#include <cstdio>

#include "program.h"

namespace di {
namespace {

class Checker {
  public:
    Checker(const di_instr& in, const std::vector<di_slot>& slots, const std::vector<Weight>& weights, char* why,
            size_t why_bytes)
        : in_(in), slots_(slots), weights_(weights), why_(why), why_bytes_(why_bytes) {}

    bool ok = true;

    void require(bool condition, const char* format, ...) __attribute__((format(printf, 3, 4))) {
        if (condition || !ok) return;
        ok = false;
        const int n = std::snprintf(why_, why_bytes_, "instruction with code %d: ", in_.op);
        if (n < 0 || static_cast<size_t>(n) >= why_bytes_) return;
        va_list args;
        va_start(args, format);
        std::vsnprintf(why_ + n, why_bytes_ - static_cast<size_t>(n), format, args);
        va_end(args);
    }

    // A slot that must be there; the first slot stands in for a missing one so that later checks have something to
    // read.
    const di_slot& slot(int id) {
        require(id >= 0 && static_cast<size_t>(id) < slots_.size(), "slot %d does not exist", id);
        return ok ? slots_[static_cast<size_t>(id)] : slots_[0];
    }
    const di_slot& input(int i) { return slot(in_.in[i]); }
    const di_slot& output() { return slot(in_.out[0]); }

    const Weight& matrix(int i, bool table_too) {
        const Weight& w = weight(i);
        require(w.desc.kind == DI_WEIGHT_LINEAR || (table_too && w.desc.kind == DI_WEIGHT_TABLE),
                "weight %d is of the wrong kind", in_.weight[i]);
        return w;
    }
    void vector(int i, int n, bool optional) {
        if (optional && in_.weight[i] < 0) return;
        const Weight& w = weight(i);
        require(w.desc.kind == DI_WEIGHT_VECTOR && w.desc.n >= n, "weight %d is no vector of %d elements",
                in_.weight[i], n);
    }
    void same_rows(const di_slot& a, const di_slot& b) {
        require(a.rows == b.rows, "inputs and outputs have different rows");
    }

    // What a matrix multiplies: numbers, or planes and their grid.
    void operand(const di_slot& x, const Weight& w, int grid_id) {
        if (!w.is_quantized()) {
            require(x.cols == w.k_cells * kCell, "%d input columns meet %d of the weight", x.cols, w.k_cells * kCell);
            require(x.dtype != DI_I8 && (x.dtype == DI_BF16) == (w.desc.dtype == DI_BF16),
                    "bf16 weights take bf16 activations, fp32 and fp16 weights fp32 ones");
            return;
        }
        const int bytes = w.quant.cells * kQuantCell;
        require(x.dtype == DI_I8 && (x.cols == bytes || x.cols == 2 * bytes),
                "%d bytes a row are no one or two planes of %d", x.cols, bytes);
        const di_slot& grid = slot(grid_id);
        same_rows(x, grid);
        require(grid.dtype == DI_F32 && grid.cols >= 2 * w.quant.groups, "no scales and sums of %d groups",
                w.quant.groups);
    }

  private:
    const Weight& weight(int i) {
        const int id = in_.weight[i];
        static const Weight none{};
        require(id >= 0 && static_cast<size_t>(id) < weights_.size(), "weight %d does not exist", id);
        return ok ? weights_[static_cast<size_t>(id)] : none;
    }

    const di_instr& in_;
    const std::vector<di_slot>& slots_;
    const std::vector<Weight>& weights_;
    char* why_;
    size_t why_bytes_;
};

void check_linear(Checker& c, const di_instr& in) {
    const di_slot &x = c.input(0), &y = c.output();
    const Weight& w = c.matrix(0, false);
    c.same_rows(x, y);
    const bool gated = (in.i[0] & DI_ACT_MUL_BIT) != 0;
    const int columns = gated ? w.desc.n / 2 : w.desc.n, kind = in.i[0] & ~DI_ACT_MUL_BIT;
    c.require(kind >= DI_ACT_NONE && kind <= DI_ACT_GELU_ERF, "activation %d is unknown", in.i[0]);
    c.require(y.cols == columns, "%d output columns for %d of the weight", y.cols, columns);
    c.require(y.dtype != DI_I8, "products are fp32 or bf16");
    c.operand(x, w, in.in[2]);
    c.vector(1, w.desc.n, true);
    if (in.in[1] >= 0) {
        const di_slot& residual = c.input(1);
        c.same_rows(residual, y);
        c.require(residual.dtype == DI_F32 && residual.cols == y.cols, "the residual is no fp32 value of %d columns",
                  y.cols);
    }
}

void check_quantize(Checker& c, const di_instr& in) {
    const di_slot &x = c.input(0), &y = c.output(), &grid = c.slot(in.out[1]);
    const int k = in.i[0], group = in.i[1], count = in.i[2], head = in.i[3], padded = in.i[4];
    c.same_rows(x, y);
    c.same_rows(x, grid);
    c.require(k >= 1 && k <= (1 << 24) && group >= 1 && group <= k && (count == 1 || count == 2),
              "%d columns in groups of %d, %d planes", k, group, count);
    if (!c.ok) return;
    const int groups = (k + group - 1) / group;
    c.require(x.dtype != DI_I8 && y.dtype == DI_I8 && y.cols == count * groups * round_up(group, kQuantCell),
              "%d bytes a row for %d groups", y.cols, groups);
    c.require(grid.dtype == DI_F32 && grid.cols >= 2 * groups, "no room for the scales and sums of %d groups", groups);
    c.require(head == 0 ? x.cols >= k : head > 0 && padded >= head && k % head == 0 && x.cols >= k / head * padded,
              "%d columns hold no %d, in heads of %d padded to %d", x.cols, k, head, padded);
    c.require(in.weight[0] < 0 || head == 0, "an order of columns that lie in heads names them with their padding");
    c.vector(0, k, true);
}

void check_route(Checker& c, const di_instr& in, int chosen) {
    const di_slot &x = c.input(0), &y = c.output();
    c.same_rows(x, y);
    c.require(in.i[0] >= 1 && in.i[0] <= kMaxExperts && in.i[1] == chosen && chosen >= 1 && chosen <= in.i[0],
              "%d of %d experts (at most %d) in a program with %d a token", in.i[1], in.i[0], kMaxExperts, chosen);
    c.require(x.dtype == DI_F32 && x.cols >= in.i[0], "no fp32 logits of %d experts", in.i[0]);
    c.require(y.dtype == DI_F32 && y.cols >= 2 * chosen, "no room for %d experts and their weights", chosen);
}

// The products of experts: x, their weights and, for quantized ones, the grid in input `grid_at`.
void check_experts(Checker& c, const di_instr& in, int chosen, int act, int grid_at) {
    const di_slot &x = c.input(0), &routing = c.input(1), &y = c.output();
    const Weight& w = c.matrix(0, false);
    const bool sums = in.op == DI_OP_EXPERT_SUM;
    c.require(x.rows == (sums ? DI_ROWS_E : DI_ROWS_T) && y.rows == (sums ? DI_ROWS_T : DI_ROWS_E),
              "rows of tokens and of experts are mixed up");
    c.require(routing.rows == DI_ROWS_T && routing.dtype == DI_F32 && routing.cols >= 2 * chosen && chosen >= 1,
              "no routing to %d experts a token", chosen);
    const bool gated = (act & DI_ACT_MUL_BIT) != 0;
    const int kind = act & ~DI_ACT_MUL_BIT, whole = kCell * (gated ? 2 : 1);
    c.require(kind >= DI_ACT_NONE && kind <= DI_ACT_GELU_ERF, "activation %d is unknown", act);
    c.require(in.i[0] >= 1 && in.i[0] <= kMaxExperts && w.desc.n % in.i[0] == 0 && w.desc.n / in.i[0] % whole == 0,
              "%d rows of the weight are no %d experts (at most %d) of whole panels", w.desc.n, in.i[0], kMaxExperts);
    if (!c.ok) return;
    const int columns = w.desc.n / in.i[0] / (gated ? 2 : 1);
    c.require(y.cols == columns && y.dtype != DI_I8, "%d output columns for %d of an expert", y.cols, columns);
    c.operand(x, w, in.in[grid_at]);
    if (!sums) return;
    c.require(y.dtype == DI_F32, "sums of experts are fp32");
    if (in.in[2] >= 0) {
        const di_slot& residual = c.input(2);
        c.require(residual.rows == DI_ROWS_T && residual.dtype == DI_F32 && residual.cols == y.cols,
                  "the residual is no fp32 value of %d columns", y.cols);
    }
}

void check_heads(Checker& c, const di_slot& slot, int heads, int head_size) {
    c.require(heads >= 1 && head_size >= 2 && head_size % 2 == 0 && head_size <= kMaxHead,
              "%d heads of %d columns; head sizes are even, 2 to %d", heads, head_size, kMaxHead);
    c.require(slot.dtype == DI_F32 && slot.cols == heads * round_up(head_size, kCell),
              "%d columns are not %d padded heads of %d, in fp32", slot.cols, heads, head_size);
}

void check_rotation(Checker& c, const di_slot& table, int rotary, int head_size, int style) {
    c.require(rotary >= 2 && rotary <= head_size && rotary % 2 == 0, "%d rotary columns of %d", rotary, head_size);
    c.require(table.dtype == DI_F32 && table.cols >= rotary, "the rope table has %d columns for %d", table.cols,
              rotary);
    c.require(style == DI_ROPE_NEOX || style == DI_ROPE_INTERLEAVED, "rope style %d is unknown", style);
}

void check_cache(Checker& c, const di_kv_desc& kv, int layer, int heads, int head_size) {
    c.require(layer >= 0 && layer < kv.layers && heads == kv.heads && head_size == kv.head_size,
              "layer %d with %d heads of %d does not fit the KV cache (%d layers, %d heads of %d)", layer, heads,
              head_size, kv.layers, kv.heads, kv.head_size);
}

// The body works on token rows and knows their tokens and caches; the tail works on tiles of logit rows, which it
// gathers first.
void check_place(Checker& c, const di_instr& in, bool in_tail) {
    const bool row_wise = in.op == DI_OP_LINEAR || in.op == DI_OP_QUANTIZE || in.op == DI_OP_RMS_NORM ||
                          in.op == DI_OP_LAYER_NORM || in.op == DI_OP_GATE_ROWS ||
                          (in.op >= DI_OP_ACT && in.op <= DI_OP_CAST);
    const bool experts = row_wise || in.op == DI_OP_EXPERT_LINEAR || in.op == DI_OP_EXPERT_SUM;
    const bool ends = in.op == DI_OP_GATHER_ROWS || in.op == DI_OP_HIDDEN || in.op == DI_OP_SAMPLE;
    c.require(row_wise || ends == in_tail, "stands in the %s of the program", in_tail ? "tail" : "body");
    static constexpr const char* kRowNames[] = {"body", "tail", "experts"};  // by di_rows
    const auto fits = [&](const di_slot& slot) {
        return in_tail ? slot.rows == DI_ROWS_R : slot.rows == DI_ROWS_T || (slot.rows == DI_ROWS_E && experts);
    };
    for (int i = 0; i < DI_MAX_IN; ++i) {
        const bool gathered = in.op == DI_OP_GATHER_ROWS && i == 0;
        if (in.in[i] >= 0 && !gathered)
            c.require(fits(c.slot(in.in[i])), "slot %d has the rows of the %s", in.in[i],
                      kRowNames[c.slot(in.in[i]).rows]);
    }
    for (const int16_t out : in.out)
        if (out >= 0) c.require(fits(c.slot(out)), "slot %d has the rows of the %s", out, kRowNames[c.slot(out).rows]);
}

// Planes are made by one operation and multiplied by others; nothing else reads or writes bytes.
void check_planes(Checker& c, const di_instr& in) {
    const bool multiplies = in.op == DI_OP_LINEAR || in.op == DI_OP_EXPERT_LINEAR || in.op == DI_OP_EXPERT_SUM;
    for (int i = multiplies ? 1 : 0; i < DI_MAX_IN; ++i)
        if (in.in[i] >= 0) c.require(c.slot(in.in[i]).dtype != DI_I8, "slot %d holds planes of integers", in.in[i]);
    for (int i = in.op == DI_OP_QUANTIZE ? 1 : 0; i < DI_MAX_OUT; ++i)
        if (in.out[i] >= 0) c.require(c.slot(in.out[i]).dtype != DI_I8, "slot %d holds planes of integers", in.out[i]);
}

}  // namespace

bool check_instr(const di_instr& in, bool in_tail, const std::vector<di_slot>& slots,
                 const std::vector<Weight>& weights, const di_kv_desc& kv, int experts_per_token, char* why,
                 size_t why_bytes) {
    Checker c(in, slots, weights, why, why_bytes);
    c.require(op_function(in.op) != nullptr, "unknown to this device");
    if (!c.ok) return false;
    check_place(c, in, in_tail);
    switch (in.op) {
        case DI_OP_EMBED: {
            const Weight& w = c.matrix(0, true);
            c.require(c.output().cols == (w.is_quantized() ? round_up(w.desc.k, kCell) : w.k_cells * kCell) &&
                          c.output().dtype == DI_F32,
                      "the output is no fp32 row of the table");
            break;
        }
        case DI_OP_ROPE_TABLE:
            c.require(in.i[0] >= DI_ROPE_STATIC && in.i[0] <= DI_ROPE_PROMPT_NTK, "rope kind %d is unknown", in.i[0]);
            c.require(in.i[1] <= kMaxHead / 2, "%d frequencies; at most %d", in.i[1], kMaxHead / 2);
            c.require(in.i[0] == DI_ROPE_STATIC || in.i[2] >= 1, "an original context of %d tokens", in.i[2]);
            c.require(in.i[1] >= 1 && c.output().dtype == DI_F32 && c.output().cols >= 2 * in.i[1],
                      "%d columns for a table of 2 x %d", c.output().cols, in.i[1]);
            c.vector(0, in.i[1], false);
            c.require(in.i[0] == DI_ROPE_STATIC || in.i[0] == DI_ROPE_LONG || in.i[1] > 1,
                      "NTK scaling of one frequency");
            c.require(in.i[7] == 0 || in.i[7] > 1, "logn from %d tokens on", in.i[7]);
            c.vector(1, in.i[1], in.i[0] != DI_ROPE_LONG);
            break;
        case DI_OP_RMS_NORM:
        case DI_OP_LAYER_NORM:
            c.same_rows(c.input(0), c.output());
            c.require(c.input(0).dtype == DI_F32 && c.input(0).cols == c.output().cols,
                      "norms read fp32 and keep the columns");
            c.require(in.i[0] >= 1 && in.i[0] <= c.input(0).cols, "%d columns count of %d", in.i[0], c.input(0).cols);
            c.vector(0, c.input(0).cols, false);
            c.vector(1, c.input(0).cols, true);
            break;
        case DI_OP_QUANTIZE:
            check_quantize(c, in);
            break;
        case DI_OP_LINEAR:
            check_linear(c, in);
            break;
        case DI_OP_ROUTE:
            check_route(c, in, experts_per_token);
            break;
        case DI_OP_EXPERT_LINEAR:
            check_experts(c, in, experts_per_token, in.i[1], 2);
            break;
        case DI_OP_EXPERT_SUM:
            check_experts(c, in, experts_per_token, DI_ACT_NONE, 3);
            break;
        case DI_OP_GATE_ROWS:
            c.same_rows(c.input(0), c.output());
            c.same_rows(c.input(0), c.input(1));
            c.require(c.input(0).cols == c.output().cols, "columns differ");
            c.require(c.input(1).dtype == DI_F32, "gates are fp32");
            break;
        case DI_OP_HEAD_NORM:
            check_heads(c, c.output(), in.i[0], in.i[1]);
            check_heads(c, c.input(0), in.i[0], in.i[1]);
            c.vector(0, round_up(in.i[1], kCell), false);
            break;
        case DI_OP_ROPE:
            check_heads(c, c.output(), in.i[0], in.i[1]);
            check_heads(c, c.input(0), in.i[0], in.i[1]);
            check_rotation(c, c.input(1), in.i[2], in.i[1], in.i[3]);
            break;
        case DI_OP_KV_WRITE:
            check_heads(c, c.input(0), in.i[1], in.i[2]);
            check_heads(c, c.input(1), in.i[1], in.i[2]);
            check_cache(c, kv, in.i[0], in.i[1], in.i[2]);
            break;
        case DI_OP_ROPE_KV:
            check_heads(c, c.output(), in.i[1], in.i[3]);
            check_heads(c, c.input(0), in.i[1], in.i[3]);
            check_heads(c, c.input(1), in.i[2], in.i[3]);
            check_heads(c, c.input(2), in.i[2], in.i[3]);
            if (in.in[3] >= 0) check_rotation(c, c.input(3), in.i[4], in.i[3], in.i[5]);
            check_cache(c, kv, in.i[0], in.i[2], in.i[3]);
            c.vector(0, round_up(in.i[3], kCell), true);
            c.vector(1, round_up(in.i[3], kCell), true);
            break;
        case DI_OP_ATTENTION:
            check_heads(c, c.input(0), in.i[1], in.i[3]);
            c.require(c.output().cols == c.input(0).cols, "%d output columns for %d of the queries", c.output().cols,
                      c.input(0).cols);
            c.require(in.i[2] >= 1 && in.i[1] % in.i[2] == 0, "%d query heads on %d key heads", in.i[1], in.i[2]);
            c.require(in.i[4] >= 0, "window %d", in.i[4]);
            check_cache(c, kv, in.i[0], in.i[2], in.i[3]);
            c.vector(0, in.i[1], true);
            c.vector(1, in.i[1], true);
            break;
        case DI_OP_MUL:
        case DI_OP_ADD:
            c.same_rows(c.input(1), c.output());
            c.require(c.input(1).cols == c.output().cols, "columns differ");
            [[fallthrough]];
        case DI_OP_ACT:
        case DI_OP_SCALE:
        case DI_OP_SOFTCAP:
        case DI_OP_CAST:
            c.same_rows(c.input(0), c.output());
            c.require(c.input(0).cols == c.output().cols, "columns differ");
            if (in.op == DI_OP_ACT)
                c.require(in.i[0] >= DI_ACT_NONE && in.i[0] <= DI_ACT_GELU_ERF, "activation %d is unknown", in.i[0]);
            break;
        case DI_OP_GATHER_ROWS:
            c.require(c.input(0).rows == DI_ROWS_T && c.output().rows == DI_ROWS_R,
                      "gathers token rows into logit rows");
            c.require(c.input(0).cols == c.output().cols && c.input(0).dtype == c.output().dtype,
                      "columns or types differ");
            break;
        case DI_OP_HIDDEN:
            c.require(c.input(0).rows == DI_ROWS_R && c.input(0).dtype == DI_F32 && in.i[0] >= 1 &&
                          in.i[0] <= c.input(0).cols,
                      "%d columns of %d fp32 ones", in.i[0], c.input(0).cols);
            break;
        case DI_OP_SAMPLE:
            c.require(c.input(0).rows == DI_ROWS_R && c.input(0).dtype == DI_F32 && in.i[0] >= 1 &&
                          in.i[0] <= c.input(0).cols,
                      "%d tokens in %d fp32 logit columns", in.i[0], c.input(0).cols);
            break;
        default:
            break;
    }
    check_planes(c, in);
    return c.ok;
}

}  // namespace di
