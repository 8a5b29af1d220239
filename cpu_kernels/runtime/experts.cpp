#include "experts.h"

#include <algorithm>
#include <cstring>

#include "program.h"

namespace di {
namespace {

constexpr size_t kMostRowBytes = size_t{8} << 20;  // of gathered rows
constexpr int kMostRows = 512;
constexpr size_t kLeastTask = size_t{1} << 17;  // bytes of weights that are worth a task of their own

size_t align_64(size_t x) { return (x + 63) / 64 * 64; }

int band_of(int rows) { return rows < kCell ? rows : kCell; }

// f(r, to) for each row and cell of an activation of n rows: `to` counts pieces of 32 columns of a row.
template <class F>
void for_pieces(int n, int cells, F f) {
    size_t to = 0;
    for (int m = 0; m < n; m += kCell) {
        const int band = band_of(n), rows = std::min(n - m, band);
        for (int c = 0; c < cells; ++c, to += static_cast<size_t>(band))
            for (int i = 0; i < rows; ++i) f(m + i, c, to + static_cast<size_t>(i));
    }
}

template <class T>
void gather_rows(const View& x, const int32_t* source, int n, T* to) {
    for_pieces(n, x.cols / kCell, [&](int i, int c, size_t piece) {
        std::memcpy(to + piece * kCell, x.row<const T>(source[i]) + static_cast<size_t>(c) * x.step(),
                    kCell * sizeof(T));
    });
}

template <class T>
void scatter_rows(const View& x, const int32_t* target, const View& y, int column) {
    const size_t first = static_cast<size_t>(column / kCell) * y.step();
    for (int i = 0; i < x.rows; ++i) {
        const T* from = x.row<const T>(i);
        T* to = y.row<T>(target[i]) + first;
        for (int c = 0; c < x.cols; c += kCell, from += x.step(), to += y.step())
            std::memcpy(to, from, kCell * sizeof(T));
    }
}

View activation(uint8_t* data, int rows, int cols, DType dtype) {
    return View{data, rows, cols, cols / kCell, 0, dtype};
}

// The products of an instruction, on one thread: rows are gathered, then multiplied with panels of an expert.
class Products {
  public:
    Products(const Run& run, const di_instr& in, int grid, int act, DType out)
        : run_(run), w_(run.weight(in.weight[0])), memory_(run.expert_memory()), out_(out) {
        x_ = run.view(in.in[0]);
        if (w_.is_quantized()) grid_ = run.view(in.in[grid]);
        act_ = static_cast<Act>(act & ~DI_ACT_MUL_BIT);
        gated_ = (act & DI_ACT_MUL_BIT) != 0;
        panels_ = w_.desc.n / kCell / in.i[0];
    }

    int panels() const { return panels_; }       // of an expert
    int unit() const { return gated_ ? 2 : 1; }  // panels that make whole cells of the output
    int columns(int panels) const { return panels * kCell / unit(); }
    size_t panel_bytes() const { return w_.bytes() / static_cast<size_t>(w_.desc.n / kCell); }

    // Takes rows source[0 .. n) of the input.
    void gather(const int32_t* source, int n) {
        n_ = n;
        if (!w_.is_quantized()) {
            x_.dtype == DType::F32 ? gather_rows(x_, source, n, reinterpret_cast<float*>(memory_.x))
                                   : gather_rows(x_, source, n, reinterpret_cast<bf16*>(memory_.x));
            return;
        }
        const Planes from = planes(x_.data, x_.rows);
        for_pieces(n, from.cells * from.count, [&](int i, int c, size_t piece) {
            std::memcpy(memory_.x + piece * kQuantCell, from.row(source[i], c / from.count, c % from.count),
                        kQuantCell);
        });
        gather_rows(grid_, source, n, reinterpret_cast<float*>(memory_.grid));
    }

    // Calls take(y, p) with the products of those rows with panels [p0, p1) of an expert, as many as there is room for
    // at a time; p is the first one of y.
    template <class F>
    void multiply(int expert, int p0, int p1, F take) {
        const size_t rows = static_cast<size_t>(n_ <= kCell ? n_ : round_up(n_, kCell));
        const size_t unit_bytes = rows * static_cast<size_t>(columns(unit())) * size_of(out_);
        const int step = std::max(1, static_cast<int>(ExpertSpace::kOutBytes / unit_bytes)) * unit();
        for (int p = p0; p < p1; p += step) {
            const int count = std::min(step, p1 - p);
            const View y = activation(memory_.y, n_, columns(count), out_);
            w_.is_quantized() ? multiply_codes(expert * panels_ + p, count, y)
                              : multiply_numbers(expert * panels_ + p, count, y);
            take(y, p);
        }
    }

  private:
    Planes planes(void* data, int rows) const {
        const int row_bytes = w_.quant.cells * kQuantCell;
        return Planes{static_cast<int8_t*>(data), rows, w_.quant.cells, x_.cols / row_bytes};
    }

    // The kernels see panels from `panel` on as a weight of its own.
    void multiply_numbers(int panel, int count, const View& y) const {
        Gemm g{};
        const auto type = static_cast<DType>(w_.desc.dtype);
        g.x = activation(memory_.x, n_, x_.cols, x_.dtype);
        g.w = w_.data + static_cast<size_t>(panel) * static_cast<size_t>(w_.k_cells) * kCellSize * size_of(type);
        g.y = y;
        g.k_cells = w_.k_cells;
        g.act = act_;
        g.gated = gated_;
        g.scratch = run_.scratch();
        const auto gemm = type == DType::BF16  ? run_.kernels.gemm_bf16
                          : type == DType::F16 ? run_.kernels.gemm_f16
                                               : run_.kernels.gemm_f32;
        gemm(g, 0, n_, 0, count);
    }

    void multiply_codes(int panel, int count, const View& y) const {
        GemmQ g{};
        const size_t codes = static_cast<size_t>(panel) * static_cast<size_t>(w_.quant.cells) * kQuantCell * kCell;
        const size_t grids = static_cast<size_t>(panel) * static_cast<size_t>(w_.quant.groups) * kCell;
        g.x = planes(memory_.x, n_);
        g.grid = activation(memory_.grid, n_, grid_.cols, DType::F32);
        g.w = w_.quant;
        g.w.codes += w_.quant.bits == DType::U4 ? codes / 2 : codes;
        g.w.scales = static_cast<uint8_t*>(w_.quant.scales) + grids * size_of(w_.quant.scale_dtype);
        g.w.zeros += grids;
        g.y = y;
        g.act = act_;
        g.gated = gated_;
        g.scratch = run_.scratch();
        run_.kernels.gemm_quant(g, 0, n_, 0, count);
    }

    const Run& run_;
    const Weight& w_;
    const ExpertSpace::Parts memory_;
    const DType out_;
    View x_{}, grid_{};
    Act act_;
    bool gated_;
    int panels_, n_ = 0;
};

// The tasks of an expert_linear: some panels of one expert with all its rows. All threads find the same ones.
class LinearTasks {
  public:
    LinearTasks(const RowsByExpert& rows, const Products& products, int threads, int32_t* begin)
        : begin_(begin), units_(products.panels() / products.unit()), unit_(products.unit()) {
        const int64_t bytes = static_cast<int64_t>(products.panel_bytes()) * products.panels();
        const int64_t most = std::max<int64_t>(1, std::min<int64_t>(units_, bytes / static_cast<int64_t>(kLeastTask)));
        int64_t total = 0;
        for (int e = 0; e < rows.experts(); ++e) total += cost(rows.count(e));
        // A thread that ends early takes over what is left, so tasks are a small part of a thread's share. Where there
        // are many rows each task gathers them anew, so they are no smaller than that.
        const int64_t share = std::max<int64_t>(1, total / (threads * (rows.few() ? 16 : 8)));
        begin[0] = 0;
        for (int e = 0; e < rows.experts(); ++e) {
            const int64_t parts = (cost(rows.count(e)) + share - 1) / share;
            begin[e + 1] = begin[e] + static_cast<int32_t>(std::min(parts, most));
        }
        count_ = begin[rows.experts()];
    }

    int count() const { return count_; }

    // Moves on to a later task: its expert and panels.
    void find(int task) {
        while (begin_[expert + 1] <= task) ++expert;
        const Range part = share(units_, task - begin_[expert], begin_[expert + 1] - begin_[expert]);
        p0 = part.begin * unit_;
        p1 = part.end * unit_;
    }

    int expert = 0, p0 = 0, p1 = 0;

  private:
    // Reading the weights costs as much as the products of some rows.
    static int64_t cost(int rows) { return rows == 0 ? 0 : std::max(rows, kCell); }

    const int32_t* begin_;
    const int units_, unit_;
    int count_;
};

// The tasks of an expert_sum: some columns of some tokens, with all experts, so that sums have one order and one owner.
struct SumTasks {
    SumTasks(const RowsByExpert& rows, const Products& products, int tokens, int threads)
        : panels_(products.panels()), tokens_(tokens) {
        const int64_t bytes = static_cast<int64_t>(products.panel_bytes()) * panels_;
        int64_t pieces = threads;
        if (rows.few()) {
            pieces = std::min<int64_t>(bytes / static_cast<int64_t>(kLeastTask), int64_t{8} * threads);
            pieces = std::max<int64_t>(pieces / threads, 1) * threads;
        }
        across_ = static_cast<int>(std::min<int64_t>(pieces, panels_));
        along_ = std::min((tokens + kCell - 1) / kCell, std::max(1, threads / across_));
    }

    int count() const { return across_ * along_; }
    Range panels(int task) const { return share(panels_, task % across_, across_); }
    Range tokens(int task) const { return share(tokens_, task / across_, along_); }

  private:
    const int panels_, tokens_;
    int across_, along_;
};

// y = residual, or zeros, in some rows and panels.
void begin_sum(const View& y, const View& residual, Range rows, Range panels) {
    if (residual.data == y.data && residual.first == y.first) return;
    for (int m = rows.begin; m < rows.end; ++m) {
        float* to = y.row<float>(m);
        const float* from = residual.data ? residual.row<const float>(m) : nullptr;
        for (int p = panels.begin; p < panels.end; ++p) {
            float* cell = to + static_cast<size_t>(p) * y.step();
            if (from)
                std::memcpy(cell, from + static_cast<size_t>(p) * residual.step(), kCell * sizeof(float));
            else
                std::memset(cell, 0, kCell * sizeof(float));
        }
    }
}

}  // namespace

// ---- Memory ----

void ExpertSpace::include(const di_instr& in, const std::vector<di_slot>& slots, int tokens, int chosen) {
    if (in.op != DI_OP_EXPERT_LINEAR && in.op != DI_OP_EXPERT_SUM) return;
    const di_slot& x = slots[static_cast<size_t>(in.in[0])];
    const int grid = in.in[in.op == DI_OP_EXPERT_LINEAR ? 2 : 3];
    rows_ = static_cast<size_t>(tokens) * static_cast<size_t>(chosen);
    experts_ = std::max(experts_, static_cast<size_t>(in.i[0]));
    x_row_ = std::max(x_row_, static_cast<size_t>(x.cols) * size_of(static_cast<DType>(x.dtype)));
    if (x.dtype != DI_I8) return;
    grid_row_ = std::max(grid_row_, static_cast<size_t>(slots[static_cast<size_t>(grid)].cols) * sizeof(float));
}

int ExpertSpace::chunk() const {
    const int fit = static_cast<int>(std::min<size_t>(kMostRowBytes / x_row_, kMostRows)) / kCell * kCell;
    return std::max(fit, kCell);
}

size_t ExpertSpace::bytes() const { return rows_ ? reinterpret_cast<uintptr_t>(at(nullptr).y) + kOutBytes : 0; }

ExpertSpace::Parts ExpertSpace::at(uint8_t* memory) const {
    const size_t rows = static_cast<size_t>(chunk());
    auto next = reinterpret_cast<uintptr_t>(memory);
    const auto take = [&](size_t bytes) {
        auto* from = reinterpret_cast<uint8_t*>(next);
        next += align_64(bytes);
        return from;
    };
    const auto ints = [&](size_t n) { return reinterpret_cast<int32_t*>(take(n * sizeof(int32_t))); };
    Parts p{};
    p.ids = ints(rows_);
    p.rows = ints(rows_);
    p.begin = ints(experts_ + 1);
    p.tasks = ints(experts_ + 1);
    p.source = ints(rows);
    p.target = ints(rows);
    p.weights = reinterpret_cast<float*>(take(rows * sizeof(float)));
    p.x = take(rows * x_row_);
    p.grid = take(rows * grid_row_);
    p.y = take(0);
    return p;
}

// ---- Rows ----

RowsByExpert::RowsByExpert(const View& routing, int chosen, int experts, const ExpertSpace::Parts& memory)
    : rows_(memory.rows), begin_(memory.begin), experts_(experts) {
    std::memset(memory.begin, 0, (static_cast<size_t>(experts) + 1) * sizeof(int32_t));
    int32_t row = 0;
    for (int t = 0; t < routing.rows; ++t) {
        const int32_t* columns = routing.row<const int32_t>(t);
        for (int j = 0; j < chosen; ++j, ++row) {
            const int32_t id =
                columns[static_cast<size_t>(j / kCell) * routing.step() + static_cast<size_t>(j % kCell)];
            memory.ids[row] = std::min(std::max(id, 0), experts - 1);
            ++memory.begin[memory.ids[row] + 1];
        }
    }
    for (int e = 0; e < experts; ++e) {
        touched_ += memory.begin[e + 1] > 0;
        memory.begin[e + 1] += memory.begin[e];
    }
    // begin[e] moves to the end of expert e, which is where the next one begins; then all move back by one.
    for (int32_t r = 0; r < row; ++r) memory.rows[memory.begin[memory.ids[r]]++] = r;
    for (int e = experts; e > 0; --e) memory.begin[e] = memory.begin[e - 1];
    memory.begin[0] = 0;
}

// ---- Instructions ----

void route(const Run& run, const di_instr& in, int) {
    const Route args{run.view(in.in[0]), run.view(in.out[0]), in.i[0], in.i[1], in.i[2] != 0, in.f[0]};
    const Range rows = share(args.y.rows, run.thread, run.threads);
    run.kernels.route(args, rows.begin, rows.end);
}

void expert_linear(const Run& run, const di_instr& in, int index) {
    const View y = run.view(in.out[0]);
    const ExpertSpace::Parts memory = run.expert_memory();
    const int chosen = run.experts_per_token(), chunk = run.expert_chunk();
    Products products(run, in, 2, in.i[1], y.dtype);
    const RowsByExpert rows(run.view(in.in[1]), chosen, in.i[0], memory);
    LinearTasks task(rows, products, run.threads, memory.tasks);
    int gathered = -1;
    for (int64_t i; (i = run.counter(index, 0).take()) < task.count();) {
        task.find(static_cast<int>(i));
        const int count = rows.count(task.expert);
        for (int r = 0; r < count; r += chunk) {
            const int n = std::min(chunk, count - r);
            const int32_t* target = rows.rows(task.expert) + r;
            if (gathered != task.expert || count > chunk) {
                for (int m = 0; m < n; ++m) memory.source[m] = target[m] / chosen;
                products.gather(memory.source, n);
                gathered = task.expert;
            }
            products.multiply(task.expert, task.p0, task.p1, [&](const View& part, int p) {
                y.dtype == DType::F32 ? scatter_rows<float>(part, target, y, products.columns(p))
                                      : scatter_rows<bf16>(part, target, y, products.columns(p));
            });
        }
    }
}

void expert_sum(const Run& run, const di_instr& in, int index) {
    const View y = run.view(in.out[0]), routing = run.view(in.in[1]), residual = run.view(in.in[2]);
    const ExpertSpace::Parts memory = run.expert_memory();
    const int chosen = run.experts_per_token(), chunk = run.expert_chunk();
    Products products(run, in, 3, DI_ACT_NONE, DType::F32);
    const RowsByExpert rows(routing, chosen, in.i[0], memory);
    const SumTasks tasks(rows, products, y.rows, run.threads);
    const auto weight = [&](int row) {
        const int c = chosen + row % chosen;
        return routing.row<const float>(
            row / chosen)[static_cast<size_t>(c / kCell) * routing.step() + static_cast<size_t>(c % kCell)];
    };
    for (int64_t i; (i = run.counter(index, 0).take()) < tasks.count();) {
        const Range panels = tasks.panels(static_cast<int>(i)), tokens = tasks.tokens(static_cast<int>(i));
        begin_sum(y, residual, tokens, panels);
        for (int e = 0; e < rows.experts(); ++e) {
            const int32_t *first = rows.rows(e), *last = first + rows.count(e);
            const int32_t* end = std::lower_bound(first, last, tokens.end * chosen);
            for (const int32_t* at = std::lower_bound(first, last, tokens.begin * chosen); at < end; at += chunk) {
                const int n = static_cast<int>(std::min<ptrdiff_t>(chunk, end - at));
                for (int m = 0; m < n; ++m) memory.target[m] = at[m] / chosen, memory.weights[m] = weight(at[m]);
                products.gather(at, n);
                products.multiply(e, panels.begin, panels.end, [&](const View& part, int p) {
                    View columns = y;
                    columns.first += p;
                    run.kernels.add_weighted(columns, part, memory.target, memory.weights, n);
                });
            }
        }
    }
}

void gate_rows(const Run& run, const di_instr& in, int) {
    const View y = run.view(in.out[0]);
    const Range rows = share(y.rows, run.thread, run.threads);
    run.kernels.gate_rows(y, run.view(in.in[0]), run.view(in.in[1]), rows.begin, rows.end);
}

}  // namespace di
