// One function per instruction: each thread does its share, all threads together do the whole.
#include <algorithm>
#include <cstdio>
#include <cstring>

#include "program.h"
#include "rope_table.h"

namespace di {
namespace {

Range my_share(const Run& run, int n) { return share(n, run.thread, run.threads); }

// ---- Tokens in ----

void embed(const Run& run, const di_instr& in, int) {
    const Weight& w = run.weight(in.weight[0]);
    const Embed args{run.view(in.out[0]), w.data, static_cast<DType>(w.desc.dtype), w.desc.kind == DI_WEIGHT_LINEAR,
                     w.k_cells,           in.f[0]};
    const Range rows = my_share(run, args.y.rows);
    const int32_t* external = run.step.external_row;
    const int32_t* end = external + run.step.n_external;
    const int32_t* next = run.step.n_external ? std::lower_bound(external, end, rows.begin) : end;
    const int hidden = w.desc.k;
    for (int m = rows.begin; m < rows.end; ++m) {
        if (next == end || *next != m) {
            // A token that the vocabulary lacks never reaches a device; clamping keeps a wrong one from reading
            // elsewhere.
            const int token = std::min(std::max(run.tokens()[m], 0), w.desc.n - 1);
            if (w.is_quantized())
                run.kernels.embed_quant(args.y, w.quant, in.f[0], token, m);
            else
                run.kernels.embed(args, token, m);
            continue;
        }
        const float* state = run.step.external + static_cast<size_t>(next++ - external) * static_cast<size_t>(hidden);
        float* y = args.y.row<float>(m);
        for (int c = 0; c < args.y.cols; ++c)
            y[static_cast<size_t>(c / kCell) * args.y.step() + c % kCell] = c < hidden ? state[c] : 0.0f;
    }
}

void rope_angles(const Run& run, const di_instr& in, int) {
    RopeTableArgs args{};
    args.y = run.view(in.out[0]);
    args.kind = in.i[0];
    args.half = in.i[1];
    args.original = in.i[2];
    for (int s = 0; s < 3; ++s) args.sections[s] = in.i[3 + s];
    args.interleaved_sections = in.i[6] != 0;
    args.logn = in.i[7];
    args.attention_factor = in.f[0];
    args.factor = in.f[1];
    args.theta = in.f[2];
    args.inv_freq = run.vector(in.weight[0]);
    args.long_inv_freq = run.vector(in.weight[1]);
    args.positions = run.step.positions;
    args.position_rows = run.step.position_rows;
    args.position_stride = run.step.position_stride;
    args.prompt_len = run.prompt_len_of();
    const Range rows = my_share(run, args.y.rows);
    rope_table(args, rows.begin, rows.end);
}

// ---- Norms and elementwise ----

Norm norm_args(const Run& run, const di_instr& in) {
    return Norm{
        run.view(in.in[0]), run.view(in.out[0]), run.vector(in.weight[0]), run.vector(in.weight[1]), in.i[0], in.f[0]};
}

void rms_norm(const Run& run, const di_instr& in, int) {
    const Norm args = norm_args(run, in);
    const Range rows = my_share(run, args.y.rows);
    run.kernels.rms_norm(args, rows.begin, rows.end);
}

void layer_norm(const Run& run, const di_instr& in, int) {
    const Norm args = norm_args(run, in);
    const Range rows = my_share(run, args.y.rows);
    run.kernels.layer_norm(args, rows.begin, rows.end);
}

void act(const Run& run, const di_instr& in, int) {
    const View y = run.view(in.out[0]);
    const Range rows = my_share(run, y.rows);
    run.kernels.act(y, run.view(in.in[0]), static_cast<Act>(in.i[0]), rows.begin, rows.end);
}

void mul(const Run& run, const di_instr& in, int) {
    const View y = run.view(in.out[0]);
    const Range rows = my_share(run, y.rows);
    run.kernels.mul(y, run.view(in.in[0]), run.view(in.in[1]), rows.begin, rows.end);
}

void add(const Run& run, const di_instr& in, int) {
    const View y = run.view(in.out[0]);
    const Range rows = my_share(run, y.rows);
    run.kernels.add(y, run.view(in.in[0]), run.view(in.in[1]), rows.begin, rows.end);
}

void scale(const Run& run, const di_instr& in, int) {
    const View y = run.view(in.out[0]);
    const Range rows = my_share(run, y.rows);
    run.kernels.scale(y, run.view(in.in[0]), in.f[0], rows.begin, rows.end);
}

void softcap(const Run& run, const di_instr& in, int) {
    const View y = run.view(in.out[0]);
    const Range rows = my_share(run, y.rows);
    run.kernels.softcap(y, run.view(in.in[0]), in.f[0], rows.begin, rows.end);
}

void cast(const Run& run, const di_instr& in, int) {
    const View y = run.view(in.out[0]);
    const Range rows = my_share(run, y.rows);
    run.kernels.cast(y, run.view(in.in[0]), rows.begin, rows.end);
}

// ---- Products ----

// Threads as a grid over panels and row bands: the one with the least work for its busiest thread. Among equals, rows
// are dealt out while everyone gets enough of them: they then stay in the L2 of one core through all of a layer, and
// leave room there. With fewer rows it costs more that each of those threads reads the weights again.
struct Grid {
    int panels, bands;
};

constexpr size_t kLeastStretch = size_t{1} << 16;  // bytes of weights that are worth a call of their own
constexpr size_t kResidentRows = size_t{1} << 20;  // bytes of rows that stay in L2; others come anew for each stretch
constexpr int kLeastPanels = 4;                    // of a stretch, for such rows
constexpr int kOwnBands = 8;                       // that are enough
constexpr int kHelped = 3;  // neighbours: with many threads, looking at all of them would take longer than helping

Grid gemm_grid(int panels, int bands, int threads) {
    Grid best{threads, 1};
    int64_t least = INT64_MAX;
    for (int along = 1; along <= std::min(bands, threads); ++along) {
        const int across = threads / along;
        const int64_t busiest = static_cast<int64_t>((panels + across - 1) / across) * ((bands + along - 1) / along);
        if (busiest < least || (busiest == least && bands / along >= kOwnBands))
            least = busiest, best = Grid{across, along};
    }
    return best;
}

// What all products have in common.
template <class Args>
void fill_product(const Run& run, const di_instr& in, Args& args) {
    args.y = run.view(in.out[0]);
    args.bias = run.vector(in.weight[1]);
    if (in.in[1] >= 0) {
        args.residual_view = run.view(in.in[1]);
        args.residual = static_cast<const float*>(args.residual_view.data);
    }
    args.act = static_cast<Act>(in.i[0] & ~DI_ACT_MUL_BIT);
    args.gated = (in.i[0] & DI_ACT_MUL_BIT) != 0;
    args.scratch = run.scratch();
}

// Calls multiply(m0, m1, p0, p1) for this thread's rows and panels, then for some of its neighbours' if they are late.
template <class F>
void share_product(const Run& run, int index, const Weight& w, int rows, F multiply) {
    const int panels = w.desc.n / kCell, bands = (rows + kCell - 1) / kCell;
    const bool resident =
        rows <= kCell || static_cast<size_t>(rows) * static_cast<size_t>(w.desc.k) <= kResidentRows / 2;
    const int least =
        resident ? static_cast<int>(kLeastStretch * static_cast<size_t>(panels) / w.bytes()) : kLeastPanels;
    const Grid grid = gemm_grid(panels, bands, run.threads);
    for (int i = 0; i < std::min(run.threads, 1 + kHelped); ++i) {
        const int owner = (run.thread + i) % run.threads;
        if (owner >= grid.panels * grid.bands) continue;
        const Range p = share(panels, owner % grid.panels, grid.panels);
        const Range m = share(bands, owner / grid.panels, grid.bands);
        Hand& hand = run.hand(index, owner);
        const End end = i == 0 ? End::Front : End::Back;
        for (Range r; hand.take(run.round, p.end - p.begin, least, end, &r);)
            multiply(m.begin * kCell, std::min(m.end * kCell, rows), p.begin + r.begin, p.begin + r.end);
    }
}

Planes planes(const Run& run, int slot, int count) {
    const View bytes = run.view(slot);
    return Planes{static_cast<int8_t*>(bytes.data), bytes.rows, bytes.cols / count / kQuantCell, count};
}

void quantize(const Run& run, const di_instr& in, int) {
    Quantize args{};
    args.x = run.view(in.in[0]);
    args.y = planes(run, in.out[0], in.i[2]);
    args.grid = run.view(in.out[1]);
    args.order = reinterpret_cast<const int32_t*>(run.vector(in.weight[0]));
    args.k = in.i[0];
    args.group = in.i[1];
    args.head = in.i[3];
    args.padded_head = in.i[4];
    const Range rows = my_share(run, args.x.rows);
    run.kernels.quantize(args, rows.begin, rows.end);
}

void linear_quant(const Run& run, const di_instr& in, int index, const Weight& w) {
    GemmQ args{};
    fill_product(run, in, args);
    args.x = planes(run, in.in[0], run.view(in.in[0]).cols / (w.quant.cells * kQuantCell));
    args.grid = run.view(in.in[2]);
    args.w = w.quant;
    share_product(run, index, w, args.x.rows,
                  [&](int m0, int m1, int p0, int p1) { run.kernels.gemm_quant(args, m0, m1, p0, p1); });
}

void linear(const Run& run, const di_instr& in, int index) {
    const Weight& w = run.weight(in.weight[0]);
    if (w.is_quantized()) return linear_quant(run, in, index, w);
    Gemm args{};
    fill_product(run, in, args);
    args.x = run.view(in.in[0]);
    args.w = w.data;
    args.k_cells = w.k_cells;
    const auto gemm = w.desc.dtype == DI_BF16  ? run.kernels.gemm_bf16
                      : w.desc.dtype == DI_F16 ? run.kernels.gemm_f16
                                               : run.kernels.gemm_f32;
    share_product(run, index, w, args.x.rows, [&](int m0, int m1, int p0, int p1) { gemm(args, m0, m1, p0, p1); });
}

// ---- Attention ----

Rope rope_args(const Run& run, const di_instr& in, int q, int k, int v, int table) {
    Rope args{};
    args.q = run.view(q);
    args.k = run.view(k);
    args.v = run.view(v);
    args.table = run.view(table);
    args.eps = in.f[0];
    return args;
}

void write_kv(const Run& run, int layer, const View& k, const View& v, Range rows) {
    const KvWrite args{run.kv(), layer, run.block_of(), run.offset_of()};
    run.kernels.kv_write(args, k, v, rows.begin, rows.end);
}

void head_norm(const Run& run, const di_instr& in, int) {
    Rope args = rope_args(run, in, in.out[0], -1, -1, -1);
    args.q_norm = run.vector(in.weight[0]);
    args.q_heads = in.i[0];
    args.head_size = in.i[1];
    args.padded_head = round_up(in.i[1], kCell);
    const Range rows = my_share(run, args.q.rows);
    if (in.in[0] != in.out[0]) run.kernels.cast(args.q, run.view(in.in[0]), rows.begin, rows.end);
    run.kernels.rope(args, rows.begin, rows.end);
}

void rope(const Run& run, const di_instr& in, int) {
    Rope args = rope_args(run, in, in.out[0], -1, -1, in.in[1]);
    args.q_heads = in.i[0];
    args.head_size = in.i[1];
    args.padded_head = round_up(in.i[1], kCell);
    args.rotary = in.i[2];
    args.interleaved = in.i[3] == DI_ROPE_INTERLEAVED;
    const Range rows = my_share(run, args.q.rows);
    if (in.in[0] != in.out[0]) run.kernels.cast(args.q, run.view(in.in[0]), rows.begin, rows.end);
    run.kernels.rope(args, rows.begin, rows.end);
}

void kv_write(const Run& run, const di_instr& in, int) {
    const View k = run.view(in.in[0]);
    write_kv(run, in.i[0], k, run.view(in.in[1]), my_share(run, k.rows));
}

void rope_kv(const Run& run, const di_instr& in, int) {
    Rope args = rope_args(run, in, in.out[0], in.in[1], in.in[2], in.in[3]);
    args.q_norm = run.vector(in.weight[0]);
    args.k_norm = run.vector(in.weight[1]);
    args.q_heads = in.i[1];
    args.kv_heads = in.i[2];
    args.head_size = in.i[3];
    args.padded_head = round_up(in.i[3], kCell);
    args.rotary = in.i[4];
    args.interleaved = in.i[5] == DI_ROPE_INTERLEAVED;
    const Range rows = my_share(run, args.q.rows);
    if (in.in[0] != in.out[0]) run.kernels.cast(args.q, run.view(in.in[0]), rows.begin, rows.end);
    run.kernels.rope(args, rows.begin, rows.end);
    write_kv(run, in.i[0], args.k, args.v, rows);
}

void attention(const Run& run, const di_instr& in, int index) {
    Attention args{};
    args.q = run.view(in.in[0]);
    args.y = run.view(in.out[0]);
    args.kv = run.kv();
    args.alibi = run.vector(in.weight[0]);
    args.sinks = run.vector(in.weight[1]);
    args.scale = in.f[0];
    args.softcap = in.f[1];
    args.layer = in.i[0];
    args.q_heads = in.i[1];
    args.kv_heads = in.i[2];
    args.head_size = in.i[3];
    args.padded_head = round_up(in.i[3], kCell);
    args.window = in.i[4];
    const auto kernel = args.kv.dtype == DType::BF16 ? run.kernels.attention_bf16
                        : args.kv.dtype == DType::U8 ? run.kernels.attention_u8
                        : args.kv.dtype == DType::U4 ? run.kernels.attention_u4
                                                     : run.kernels.attention_f32;
    AttentionPlan& plan = run.plan(index);
    const auto& tasks = plan.tasks();
    const auto count = static_cast<int64_t>(tasks.size());
    for (int64_t i; (i = run.counter(index, 0).take()) < count;)
        kernel(args, tasks[static_cast<size_t>(i)], run.scratch());
    const auto merges = static_cast<int64_t>(plan.merges().size());
    if (!merges) return;
    run.barrier();
    for (int64_t i; (i = run.counter(index, 1).take()) < merges;) {
        const MergeTask& merge = plan.merges()[static_cast<size_t>(i)];
        run.kernels.attention_merge(args, merge.task, plan.partial(merge.partial),
                                    merge.task.split1 - merge.task.split0);
    }
}

// ---- Logits out ----

void gather_rows(const Run& run, const di_instr& in, int) {
    const View x = run.view(in.in[0]), y = run.view(in.out[0]);
    const size_t element = size_of(x.dtype);
    const Range rows = my_share(run, y.rows);
    for (int m = rows.begin; m < rows.end; ++m) {
        const int from = run.step.logit_row[run.tail_row + m];
        const uint8_t* source = x.dtype == DType::F32 ? reinterpret_cast<uint8_t*>(x.row<float>(from))
                                                      : reinterpret_cast<uint8_t*>(x.row<bf16>(from));
        uint8_t* target = y.dtype == DType::F32 ? reinterpret_cast<uint8_t*>(y.row<float>(m))
                                                : reinterpret_cast<uint8_t*>(y.row<bf16>(m));
        for (int c = 0; c < y.cols / kCell; ++c)
            std::memcpy(target + static_cast<size_t>(c) * y.step() * element,
                        source + static_cast<size_t>(c) * x.step() * element, kCell * element);
    }
}

void hidden(const Run& run, const di_instr& in, int) {
    if (!run.step.out_hidden) return;
    const View h = run.view(in.in[0]);
    const int columns = in.i[0];
    const Range rows = my_share(run, h.rows);
    for (int m = rows.begin; m < rows.end; ++m) {
        float* target = run.step.out_hidden + static_cast<size_t>(run.tail_row + m) * static_cast<size_t>(columns);
        const float* source = h.row<float>(m);
        for (int c = 0; c < columns; c += kCell)
            std::memcpy(target + c, source + static_cast<size_t>(c / kCell) * h.step(),
                        sizeof(float) * static_cast<size_t>(std::min(columns - c, static_cast<int>(kCell))));
    }
}

void sample_one(const Run& run, const LogitRow& row) {
    const int max_top = run.max_logprobs();
    const size_t r = static_cast<size_t>(run.tail_row + row.m);
    if (run.step.out_logits) row.copy(run.step.out_logits + r * static_cast<size_t>(row.vocab));
    SampleResult result{};
    result.top_ids = run.step.out_top_ids + r * static_cast<size_t>(max_top);
    result.top_logprobs = run.step.out_top_logprobs + r * static_cast<size_t>(max_top);
    const di_sample& want = run.step.sample[r];
    sample_row(run.kernels, want, row, run.scratch(), run.sampler_scratch(), result);
    run.step.out_token[r] = result.token;
    run.step.out_status[r] = result.status;
    run.step.out_logprob[r] = result.logprob;
    run.step.out_rank[r] = result.rank;
    if (want.slot >= 0 && want.target < 0 && result.status == DI_SAMPLE_OK) run.last_token()[want.slot] = result.token;
}

// A task is a few neighbouring rows, as many as leave work for every thread.
void sample(const Run& run, const di_instr& in, int index) {
    const View logits = run.view(in.in[0]);
    SamplerScratch& scratch = run.sampler_scratch();
    const int most = std::max(1, std::min(SamplerScratch::kRows, run.tail_count / (2 * run.threads)));
    for (int64_t i; (i = run.counter(index, 0).take() * most) < run.tail_count;) {
        const int first = static_cast<int>(i), count = std::min(most, run.tail_count - first);
        float* maxima = scratch.raw_maxima.get();
        run.kernels.block_maxima(logits, first, count, run.vocab(), maxima, static_cast<size_t>(scratch.blocks));
        for (int m = first; m < first + count; ++m, maxima += scratch.blocks)
            sample_one(run, LogitRow{logits, m, run.vocab(), maxima});
    }
}

}  // namespace

OpFn op_function(int op) {
    switch (op) {
        case DI_OP_EMBED:
            return embed;
        case DI_OP_ROPE_TABLE:
            return rope_angles;
        case DI_OP_RMS_NORM:
            return rms_norm;
        case DI_OP_LAYER_NORM:
            return layer_norm;
        case DI_OP_LINEAR:
            return linear;
        case DI_OP_HEAD_NORM:
            return head_norm;
        case DI_OP_ROPE:
            return rope;
        case DI_OP_KV_WRITE:
            return kv_write;
        case DI_OP_ROPE_KV:
            return rope_kv;
        case DI_OP_ATTENTION:
            return attention;
        case DI_OP_ACT:
            return act;
        case DI_OP_MUL:
            return mul;
        case DI_OP_ADD:
            return add;
        case DI_OP_SCALE:
            return scale;
        case DI_OP_SOFTCAP:
            return softcap;
        case DI_OP_CAST:
            return cast;
        case DI_OP_GATHER_ROWS:
            return gather_rows;
        case DI_OP_HIDDEN:
            return hidden;
        case DI_OP_SAMPLE:
            return sample;
        case DI_OP_QUANTIZE:
            return quantize;
        case DI_OP_ROUTE:
            return route;
        case DI_OP_EXPERT_LINEAR:
            return expert_linear;
        case DI_OP_EXPERT_SUM:
            return expert_sum;
        case DI_OP_GATE_ROWS:
            return gate_rows;
        default:
            return nullptr;
    }
}

}  // namespace di
