// x[M,K] · w[N,K]ᵀ in bf16 for many rows: a block of a panel stays in L1 while the rows pass over it.
//
// Stores of tiles stop the multiplications behind them. So the sums of a block leave between the instructions of the
// next block's first cell, and what follows from them (merging, the epilogue) is done between those of its other cells.
#pragma once
#include "../generic/epilogue.h"
#include "blocking.h"
#include "tile.h"

namespace di {
namespace {

constexpr int kBlockCells = 14;  // cells of K in a block: 28 KiB of one panel stay in L1
constexpr int kRowsACell = 4;    // rows that are finished between the instructions of a cell
constexpr size_t kCellBytes = kCellSize * sizeof(bf16);
constexpr long kSumStride = kCell * sizeof(float);

DI_INLINE const char* panel_of(const Gemm& g, int p) {
    return static_cast<const char*>(g.w) + static_cast<size_t>(p) * g.k_cells * kCellBytes;
}

// to = from + to
DI_INLINE void add_sums(float* to, const float* from, int rows) {
    for (int i = 0; i < rows * kCell; i += 16) (Vec::load(from + i) + Vec::load(to + i)).store(to + i);
}

template <int kLow, int kHigh>
DI_INLINE void store_sums(float* sums) {
    tile_store<kLow>(sums, kSumStride);
    tile_store<kHigh>(sums + 16, kSumStride);
}

// A block of the sums: `cells` cells of K for one panel and one band.
struct Block {
    const char* x;
    const char* w;
    int cells;
    const float* from;  // running sums as four tiles, or null: start at zero
};

// Cache lines that are fetched while a block is multiplied, some of each kind in a cell.
struct Fetches {
    Lines w, x, out;
    int w_lines = 0, x_lines = 0, out_lines = 0;

    template <bool kAll>
    DI_INLINE void fetch() {
        w.fetch<0, 2>(w_lines);
        if (!kAll) return;
        x.fetch<0, 2>(x_lines);
        out.fetch<1, 3>(out_lines);
    }
};

// Sums on their way out of the tiles 4 to 7.
struct Leaving {
    float* to = nullptr;               // null: there are none
    bool final = false, rows = false;  // of K; as rows of 32, else as four tiles
    const float* total = nullptr;      // is added to them, or null
    float* merged = nullptr;           // to this they are added, or null
    int m = 0, count = 0, p = 0;       // final: which rows and panel

    template <int kTile>
    DI_INLINE void store() const {
        constexpr int kPart = kTile - 4, kRow = kPart / 2 * 16, kColumn = kPart % 2 * 16;
        if (rows) {
            tile_store<kTile>(to + kRow * kCell + kColumn, kSumStride);
        } else {
            tile_store<kTile>(to + kPart * 256);
        }
    }
};

// What a thread's product keeps from block to block.
template <Finish kHow>
class Pipeline {
  public:
    explicit Pipeline(const Gemm& g) : g_(g) {}

    float* sums() { return sums_; }
    void leave(const Leaving& sums) { leaving_ = sums; }

    // A block, kTwo: of more than 16 rows. Meanwhile the sums of the block before leave and are finished, and lines are
    // fetched: kAll: of rows and sums too, not of weights alone.
    template <bool kTwo, bool kAll>
    DI_INLINE void run(const Block& b, Fetches& ahead) {
        first_cell<kTwo>(b);
        settle();
        other_cells<kTwo, kAll>(b, ahead);
    }

    // After the last block.
    void drain() {
        if (leaving_.to) { leaving_.store<4>(), leaving_.store<5>(), leaving_.store<6>(), leaving_.store<7>(); }
        settle();
        pending_.finish_all();
    }

  private:
    // The first cell of a block, while the sums of the block before leave.
    template <bool kTwo>
    DI_INLINE void first_cell(const Block& b) {
        exchange<4>(b);
        tile_load<2>(b.w);
        tile_load_stream<0>(b.x);
        tile_multiply_bf16<4, 0, 2>();
        exchange<5>(b);
        tile_load<3>(b.w + kTileBytes);
        tile_multiply_bf16<5, 0, 3>();
        exchange<6>(b);
        if (kTwo) {
            tile_load_stream<1>(b.x + kTileBytes);
            tile_multiply_bf16<6, 1, 2>();
        }
        exchange<7>(b);
        if (kTwo) tile_multiply_bf16<7, 1, 3>();
    }

    // The neighbour on the same core, if there is one, has half of the instructions' slots: what need not be done in a
    // cell is not even asked about there.
    template <bool kTwo, bool kAll>
    DI_INLINE void other_cells(const Block& b, Fetches& ahead) {
        const char *x = b.x, *w = b.w;
        int left = b.cells - 1;
        const auto cell = [&] {
            x += kCellBytes, w += kCellBytes;
            tile_load<2>(w);
            tile_load_stream<0>(x);
            tile_multiply_bf16<4, 0, 2>();
            tile_load<3>(w + kTileBytes);
            tile_multiply_bf16<5, 0, 3>();
            if (kTwo) {
                tile_load_stream<1>(x + kTileBytes);
                tile_multiply_bf16<6, 1, 2>();
                tile_multiply_bf16<7, 1, 3>();
            }
            ahead.fetch<kAll>();
        };
        for (; left > 0 && pending_.left() >= kRowsACell; --left) {
            cell();
            pending_.template advance<kRowsACell>();
        }
        for (; left > 0; --left) cell();
        pending_.finish_all();
    }

    // A tile's old sums leave and its new ones arrive.
    template <int kTile>
    DI_INLINE void exchange(const Block& b) const {
        if (leaving_.to) leaving_.store<kTile>();
        if (b.from) {
            tile_load_stream<kTile>(b.from + (kTile - 4) * 256);
        } else {
            tile_zero<kTile>();
        }
    }

    // The sums have left: they are merged, or they wait to be finished.
    DI_INLINE void settle() {
        if (leaving_.total) add_sums(sums_, leaving_.total, kCell);
        if (leaving_.merged) add_sums(leaving_.merged, sums_, kCell);
        if (leaving_.final) pending_.begin(g_, leaving_.m, leaving_.count, leaving_.p, sums_);
        leaving_ = {};
    }

    const Gemm& g_;
    Leaving leaving_;
    PendingRows<kHow> pending_;
    alignas(64) float sums_[kCellSize];
};

// One group of panels [q0, q1) against one chunk of rows [m0, m1).
template <Finish kHow>
struct Group {
    const Gemm& g;
    int m0, m1, q0, q1;
    bool resident;  // the rows are in L2 and need no fetching, nor do the few sums
    Pipeline<kHow>& line;

    int bands() const { return (m1 - m0 + kCell - 1) / kCell; }
    float* acc(int p, int band) const { return g.scratch + (static_cast<size_t>(p - q0) * bands() + band) * kCellSize; }
    float* total(int p, int band) const { return acc(p, band) + kGroupPanels * kChunkBands * kCellSize; }
    const char* x(int band, int cell) const {
        return reinterpret_cast<const char*>(g.x.row<const bf16>(m0 + band * kCell)) + cell * kCellBytes;
    }

    DI_INLINE void run() {
        const int last = segments(g.k_cells) - 1;
        for (int s = 0; s <= last; ++s) {
            const int begin = segment_begin(g.k_cells, s), cells = segment_begin(g.k_cells, s + 1) - begin;
            const int blocks = parts_of(cells, kBlockCells);
            for (int b = 0; b < blocks; ++b) {
                Step step{};
                step.k0 = begin + part_begin(cells, blocks, b);
                step.k1 = begin + part_begin(cells, blocks, b + 1);
                step.segment = s;
                step.first = b == 0;
                step.last = b == blocks - 1;
                step.final = step.last && s == last;
                set_next(step);
                for (int p = q0; p < q1; ++p) run_panel(step, p);
            }
        }
    }

  private:
    // One block of K: cells [k0, k1), followed by [next0, next1).
    struct Step {
        int k0, k1, next0, next1, segment;
        bool first, last, final;  // of the segment, of the segment, of K
    };

    void set_next(Step& step) const {
        step.next0 = step.final ? 0 : step.k1;
        const int left = g.k_cells - step.next0, same = step.k1 - step.k0;
        step.next1 = step.next0 + (left < same ? left : same);
    }

    DI_INLINE void run_panel(const Step& step, int p) {
        const int cells = step.k1 - step.k0;
        const char* w = panel_of(g, p) + step.k0 * kCellBytes;
        const char* w_next = p + 1 < q1 ? panel_of(g, p + 1) + step.k0 * kCellBytes
                                        : panel_of(g, step.final ? q1 : q0) + step.next0 * kCellBytes;
        Fetches ahead;
        ahead.w = {w_next, w_next + cells * kCellBytes};
        const int after = cells > 1 ? cells - 1 : 1;  // a block's first cell fetches nothing
        const int w_lines = ahead.w.share(bands() * after), next_cells = step.next1 - step.next0;
        // This panel's part of the next block of x.
        const int x0 = step.next0 + part_begin(next_cells, q1 - q0, p - q0);
        const int x1 = step.next0 + part_begin(next_cells, q1 - q0, p - q0 + 1);
        for (int i = 0; i < bands(); ++i) {
            const int m = m0 + i * kCell, rows = m1 - m < kCell ? m1 - m : kCell;
            const Block block{x(i, step.k0), w, cells, step.first ? nullptr : acc(p, i)};
            ahead.w_lines = ahead.w.is_done() ? 0 : w_lines;
            if (resident) {
                run_block<false>(block, ahead, rows);
            } else {
                ahead.x = {x(i, x0), x(i, x1)};
                ahead.out = output_lines(step, m, p, i);
                ahead.x_lines = ahead.x.share(after);
                ahead.out_lines = ahead.out.share(after);
                run_block<true>(block, ahead, rows);
            }
            line.leave(leaving(step, m, rows, p, i));
        }
    }

    template <bool kAll>
    DI_INLINE void run_block(const Block& block, Fetches& ahead, int rows) const {
        if (rows > 16) {
            line.template run<true, kAll>(block, ahead);
        } else {
            line.template run<false, kAll>(block, ahead);
        }
    }

    Lines output_lines(const Step& step, int m, int p, int band) const {
        const char* at = reinterpret_cast<const char*>(acc(p, band));
        size_t bytes = kCellSize * sizeof(float);
        if (step.final) {
            bytes = kCellSize * size_of(g.y.dtype);
            at = static_cast<const char*>(RowEpilogue(g, m, p).y);
        }
        return {at, at + bytes};
    }

    // Sums leave as they are within a segment, are merged with the total at its end, and are finished at K's end.
    DI_INLINE Leaving leaving(const Step& step, int m, int rows, int p, int band) const {
        if (!step.last) return {acc(p, band)};
        const bool merge = step.segment > 0;
        Leaving l{step.final || merge ? line.sums() : total(p, band), step.final, true};
        if (merge && step.final) l.total = total(p, band);
        if (merge && !step.final) l.merged = total(p, band);
        l.m = m, l.count = rows, l.p = p;
        return l;
    }
};

template <Finish kHow>
DI_NOINLINE void gemm_blocked(const Gemm& g, int m0, int m1, int p0, int p1) {
    configure_tiles(16, 16);
    Pipeline<kHow> line(g);
    const int bands = (m1 - m0 + kCell - 1) / kCell;
    const bool resident = is_resident(bands, g.k_cells * kCellBytes);
    const int chunks = parts_of(bands, kChunkBands), groups = parts_of(p1 - p0, resident ? 1 : kGroupPanels);
    for (int c = 0; c < chunks; ++c) {
        const int begin = m0 + part_begin(bands, chunks, c) * kCell;
        const int end = m0 + part_begin(bands, chunks, c + 1) * kCell;
        for (int q = 0; q < groups; ++q) {
            const int q0 = p0 + part_begin(p1 - p0, groups, q), q1 = p0 + part_begin(p1 - p0, groups, q + 1);
            Group<kHow>{g, begin, end < m1 ? end : m1, q0, q1, resident, line}.run();
        }
    }
    line.drain();
}

}  // namespace
}  // namespace di
