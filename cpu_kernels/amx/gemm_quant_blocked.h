// Many rows: blocks of a panel's codes stay in L1 while the rows' planes pass over them. The sums of a group, exact
// integers, leave the tiles in the first cell of the next, and what becomes of them is done between its instructions.
#pragma once
#include "../generic/gemm_quant.h"
#include "blocking.h"
#include "codes.h"
#include "combine.h"

namespace di {
namespace {

// Cells of K in a block, which stays in L1 with the rows and sums that pass: 28 KiB of a panel where that is all of K,
// so that no sums return, else 24.
constexpr int kWholeCells = 14, kPartCells = 12;

DI_INLINE int block_cells(const QuantWeight& w) { return w.cells <= kWholeCells ? kWholeCells : kPartCells; }

// The sums of a unit, the four tiles 4 to 7: with two planes 16 rows of either, with one plane 32 rows.
template <int kPlanes>
constexpr int kUnitRows = kPlanes == 2 ? 16 : 32;

// Work on the sums of one group of a unit, done a few rows at a time: they become totals, and at K's end rows of y.
template <int kPlanes, bool kZeros, Finish kHow>
struct Pending {
    GroupSums sums{};  // of the first row
    float* totals = nullptr;
    RowEpilogue epilogue{};  // last: of the rows
    Fits fits = Fits::Never;
    bool last = false;
    int row = 0, stop = 0, rows = 0;  // done, those of the first tiles, all
    int jump = 0;                     // from the first tiles to those of the rows after `stop`

    // At most n of the rows that are left, of one pair of tiles.
    DI_INLINE void work(int n) {
        if (row < rows) finish(n < stop - row ? n : stop - row);
    }
    // The same for a number that the compiler knows, and so without a loop where there are as many.
    template <int kCount>
    DI_INLINE void work() {
        if (row == rows) return;
        __builtin_expect(stop - row >= kCount, true) ? finish(kCount) : finish(stop - row);
    }
    DI_INLINE void complete() {
        work(kUnitRows<kPlanes>);
        if (kPlanes == 1) work(kUnitRows<kPlanes>);
    }

  private:
    DI_INLINE void finish(int count) {
        const GroupSums from = sums.from(row);
        if (last) {
            combine_rows<kPlanes, kZeros>(from, count, fits,
                                          [&](int r, Vec a, Vec b) { epilogue.template finish<kHow>(row + r, a, b); });
        } else {
            combine_rows<kPlanes, kZeros>(from, count, fits, StoreTotals{totals + row * kCell});
        }
        row += count;
        if (kPlanes == 1 && row == stop) sums.tiles += jump, stop = rows;
    }
};

// A stretch of K: whole groups, or a part of one.
struct KRange {
    int cell, cells;  // of the planes
    int group, groups;
    bool begins, ends;  // its groups
    bool last;          // of K
};

// Memory of one thread's product besides the spilled sums. It stands apart from what the loops keep in registers: tile
// instructions may write any memory that they can reach.
template <bool kNibbles>
struct CodeBuffers {
    alignas(64) int32_t sums[2][4 * 256];
    alignas(64) float finished[kCellSize];
    alignas(64) float grids[3][kWholeCells][2 * kCell];  // scales, then zeros as int32; of three panels in turn
    alignas(64) uint8_t tiles[kNibbles ? kWholeCells * 2 * kTileBytes : 64];
};

// Sums on their way out of the tiles, and the work that they become: none within a group.
template <int kPlanes, bool kZeros, Finish kHow>
struct LeavingSums {
    int32_t* to = nullptr;  // null: there are none
    Pending<kPlanes, kZeros, kHow> work;
};

// One group of panels [q0, q1) against one chunk of rows [m0, m1). Scratch: the sums of units between parts of a group,
// then their totals between stretches of K.
template <int kPlanes, bool kNibbles, Finish kHow>
class QuantGroup {
  public:
    static constexpr int kUnits = kPlanes == 2 ? 2 : 1;  // of a band
    static constexpr size_t kUnitInts = 4 * 256;
    using Sums = Pending<kPlanes, !kNibbles, kHow>;

    QuantGroup(const GemmQ& q, const Gemm& epilogue, CodeBuffers<kNibbles>& buffers, bool resident, int m0, int m1,
               int q0, int q1)
        : x_(q.x),
          grid_(q.grid),
          w_(q.w),
          epilogue_(epilogue),
          buffers_(buffers),
          resident_(resident),
          block_(block_cells(q.w)),
          m0_(m0),
          m1_(m1),
          q0_(q0),
          q1_(q1) {
        const size_t units = static_cast<size_t>(q1 - q0) * bands() * kUnits;
        ints_ = reinterpret_cast<int32_t*>(q.scratch);
        totals_ = q.scratch + (w_.group_cells() > block_ ? units * kUnitInts : 0);
        fits_ = fits_of(w_, kPlanes);
    }

    DI_INLINE void run() {
        KRange s = range_at(0);
        for (;;) {
            const KRange next = s.last ? range_at(0) : range_at(s.cell + s.cells);
            for (int p = q0_; p < q1_; ++p) run_panel(s, next, p);
            if (s.last) break;
            s = next;
        }
        if (leaving_.to) leave<4>(), leave<5>(), leave<6>(), leave<7>();
        pending_.complete();
        settle();
        pending_.complete();
    }

  private:
    int bands() const { return (m1_ - m0_ + kCell - 1) / kCell; }

    // The stretch of K that begins at a cell.
    KRange range_at(int cell) const {
        const int size = w_.group_cells(), group = cell / size;
        if (size <= block_) {
            const int most = block_ / size, left = w_.groups - group, groups = left < most ? left : most;
            const int end = groups == left ? w_.cells : (group + groups) * size;
            return {cell, end - cell, group, groups, true, true, end == w_.cells};
        }
        const int begin = group * size, full = begin + size, end = full < w_.cells ? full : w_.cells;
        const int parts = parts_of(end - begin, block_);
        int part = 0;
        while (begin + part_begin(end - begin, parts, part) < cell) ++part;
        const int stop = begin + part_begin(end - begin, parts, part + 1);
        return {cell, stop - cell, group, 1, cell == begin, stop == end, stop == w_.cells};
    }

    // Where a unit stands in its walk over K.
    struct Cursor {
        const uint8_t* w;
        const int8_t* x;
        size_t x_step;
        long second;  // bytes from tile 0 to tile 1
    };
    struct Ahead {
        Lines w, x;
        int w_lines, x_lines;  // a cell
    };
    struct Unit {
        int m, rows, shift;  // rows from m count; the tiles begin `shift` rows before m
        float* totals;
        const float* grid;
    };

    DI_INLINE void run_panel(const KRange& s, const KRange& next, int p) {
        const uint8_t* w = load_panel(s, p);
        const int band_rows = x_.band(), second = band_rows - 16, size = w_.group_cells();
        const size_t x_step = static_cast<size_t>(kPlanes) * band_rows * kQuantCell;
        Ahead ahead = weights_ahead(s, next, p);
        const int w_lines = ahead.w.share(bands() * kUnits * s.cells);
        // This panel's part of the next stretch of x.
        const size_t x0 = next.cell + part_begin(next.cells, q1_ - q0_, p - q0_);
        const size_t x1 = next.cell + part_begin(next.cells, q1_ - q0_, p - q0_ + 1);
        for (int i = 0; i < bands() * kUnits; ++i) {
            const int half = i % kUnits, band = m0_ + i / kUnits * kCell, first = half * second;
            const int m = band + 16 * half, left = m1_ - m;
            if (left <= 0) continue;
            ahead.w_lines = ahead.w.is_done() ? 0 : w_lines;
            const int8_t* x = x_.row(band, 0, 0);
            const auto* x_ahead = reinterpret_cast<const char*>(x);
            if (!resident_) {
                ahead.x = {x_ahead + (half == 0 ? x0 : x1) * x_step, x_ahead + x1 * x_step};
                ahead.x_lines = ahead.x.share(s.cells);
            }
            Cursor at{w, x + s.cell * x_step + first * kQuantCell, x_step,
                      (kPlanes == 2 ? band_rows : second) * kQuantCell};
            const size_t index = static_cast<size_t>(p - q0_) * bands() * kUnits + i;
            int32_t* ints = ints_ + index * kUnitInts;
            float* totals = whole_k(s) ? buffers_.finished : totals_ + index * kUnitRows<kPlanes> * kCell;
            const Unit unit{m, left < kUnitRows<kPlanes> ? left : kUnitRows<kPlanes>, 16 * half - first, totals,
                            grid_.row<const float>(m)};
            for (int g = 0; g < s.groups; ++g) {
                const int rest = s.cells - g * size, cells = s.groups == 1 || rest < size ? rest : size;
                multiply(at, cells, s.begins ? nullptr : ints, ahead);
                if (s.ends) {
                    hand_over(unit, s.group + g, buffers_.grids[grid_turn_][g], p);
                } else {
                    leaving_.to = ints;
                }
            }
        }
    }

    // Whether a unit's totals are done with in one stretch.
    bool whole_k(const KRange& s) const { return s.cells == w_.cells || w_.groups == 1; }

    // The codes that come next: this stretch of the next panel, or the next stretch of the first.
    Ahead weights_ahead(const KRange& s, const KRange& next, int p) const {
        const bool more = p + 1 < q1_;
        const KRange& then = more ? s : next;
        const int panel = more ? p + 1 : s.last ? q1_ : q0_;
        const auto* at = reinterpret_cast<const char*>(panel_codes(w_, panel) + then.cell * code_bytes(kNibbles));
        return {{at, at + then.cells * code_bytes(kNibbles)}, {}, 0, 0};
    }

    // A group's sums are to leave the tiles and to become pending work.
    DI_INLINE void hand_over(const Unit& unit, int group, const float* panel, int p) {
        turn_ ^= 1;
        leaving_.to = buffers_.sums[turn_];
        const float *scales = unit.grid + column(group), *integers = unit.grid + column(w_.groups + group);
        Sums& work = leaving_.work;
        // In a band of fewer rows the tiles overlap.
        const int32_t* tiles = leaving_.to + (kPlanes == 2 ? unit.shift * 16 : 0);
        work.sums = {tiles, 512, panel, scales, integers, group > 0 ? unit.totals : nullptr};
        work.totals = unit.totals;
        work.fits = fits_;
        work.last = group + 1 == w_.groups;
        work.row = 0;
        work.stop = unit.rows < 16 ? unit.rows : 16;
        work.rows = unit.rows;
        work.jump = 256 + (kCell - x_.band()) * 16;
        if (work.last) work.epilogue = RowEpilogue(epilogue_, unit.m, p);
    }

    size_t column(int c) const { return c / kCell * grid_.step() + c % kCell; }

    template <int kTile>
    DI_INLINE void leave() const {
        tile_store<kTile>(leaving_.to + (kTile - 4) * 256);
    }
    // A tile's old sums leave and its new ones arrive.
    template <int kTile>
    DI_INLINE void exchange(const int32_t* from) const {
        if (leaving_.to) leave<kTile>();
        if (from) {
            tile_load_stream<kTile>(from + (kTile - 4) * 256);
        } else {
            tile_zero<kTile>();
        }
    }

    // The sums have left; nothing else is pending.
    DI_INLINE void settle() {
        if (leaving_.work.rows) pending_ = leaving_.work;
        leaving_.to = nullptr;
        leaving_.work.rows = 0;
    }

    // The cells of a group, or of a part of one. The sums before leave in the first; there what was pending ends.
    DI_INLINE void multiply(Cursor& at, int cells, const int32_t* from, Ahead& ahead) {
        constexpr int kUsual = kPlanes == 2 ? 2 : 3, kOfPair = 8;  // rows a cell of long groups, and of 128 columns
        const int work = (kUnitRows<kPlanes> + cells - 1) / cells;
        exchange<4>(from);
        tile_load<2>(at.w);
        tile_load_stream<0>(at.x);
        tile_multiply_bytes<kNibbles, 4, 0, 2>();
        exchange<5>(from);
        tile_load<3>(at.w + kTileBytes);
        tile_multiply_bytes<kNibbles, 5, 0, 3>();
        exchange<6>(from);
        tile_load_stream<1>(at.x + at.second);
        tile_multiply_bytes<kNibbles, 6, 1, 2>();
        exchange<7>(from);
        tile_multiply_bytes<kNibbles, 7, 1, 3>();
        fetch(ahead);
        pending_.complete();
        settle();
        for (int c = 1; c < cells; ++c) {
            at.x += at.x_step, at.w += 2 * kTileBytes;
            tile_load<2>(at.w);
            tile_load_stream<0>(at.x);
            tile_multiply_bytes<kNibbles, 4, 0, 2>();
            tile_load<3>(at.w + kTileBytes);
            tile_multiply_bytes<kNibbles, 5, 0, 3>();
            tile_load_stream<1>(at.x + at.second);
            tile_multiply_bytes<kNibbles, 6, 1, 2>();
            tile_multiply_bytes<kNibbles, 7, 1, 3>();
            fetch(ahead);
            if (work <= kUsual) {
                pending_.template work<kUsual>();
            } else if (kPlanes == 2 && work == kOfPair) {
                pending_.template work<kOfPair>();
            } else {
                pending_.work(work);
            }
        }
        at.x += at.x_step, at.w += 2 * kTileBytes;
    }

    static DI_INLINE void fetch(Ahead& ahead) {
        ahead.w.template fetch<0, 2>(ahead.w_lines);
        ahead.x.template fetch<0, 2>(ahead.x_lines);
    }

    // Scales, zero points and tiles of a panel's stretch.
    DI_INLINE const uint8_t* load_panel(const KRange& s, int p) {
        const uint8_t* from = panel_codes(w_, p) + s.cell * code_bytes(kNibbles);
        grid_turn_ = (grid_turn_ + 1) % 3;  // work on the sums of a panel may end in the second one after it
        for (int i = 0; i < s.groups; ++i) {
            PanelGrid grid;
            load_grid(w_, p, s.group + i, grid);
            __builtin_memcpy(buffers_.grids[grid_turn_][i], &grid, sizeof grid);
        }
        if (!kNibbles) return from;
        const int size = s.groups > 1 ? w_.group_cells() : s.cells;
        for (int i = 0; i < s.groups; ++i) {
            const ZeroBytes zeros(zeros_of(w_, p, s.group + i));
            const int begin = i * size, end = begin + size < s.cells ? begin + size : s.cells;
            for (int c = begin; c < end; ++c) unpack_cell(from + c * 1024, zeros, buffers_.tiles + c * 2 * kTileBytes);
        }
        return buffers_.tiles;
    }

    const Planes x_;
    const View grid_;
    const QuantWeight w_;
    const Gemm& epilogue_;
    CodeBuffers<kNibbles>& buffers_;
    const bool resident_;  // the rows are in L2 and need no fetching
    const int block_;
    const int m0_, m1_, q0_, q1_;
    int32_t* ints_;
    float* totals_;
    Fits fits_;
    Sums pending_;
    LeavingSums<kPlanes, !kNibbles, kHow> leaving_;
    int turn_ = 0, grid_turn_ = 0;  // of the buffers that pending work reads and the next is written to
};

template <int kPlanes, bool kNibbles, Finish kHow>
DI_NOINLINE void gemm_quant_blocked(const GemmQ& g, int m0, int m1, int p0, int p1) {
    configure_tiles(16, 16);
    const int block = block_cells(g.w);
    const bool parts = g.w.group_cells() > block, sums = g.w.groups > 1 && g.w.cells > block;
    const int bands = (m1 - m0 + kCell - 1) / kCell;
    // What the scratch and L2 hold.
    const int most = (kPlanes == 2 && (parts || sums)) || (parts && sums) ? kChunkBands / 2 : kChunkBands;
    const bool resident = is_resident(bands, static_cast<size_t>(kPlanes) * kCell * kQuantCell * g.w.cells);
    const int chunks = parts_of(bands, most), groups = parts_of(p1 - p0, resident ? 1 : kGroupPanels);
    const Gemm epilogue = epilogue_of(g);
    CodeBuffers<kNibbles> buffers;
    for (int i = 0; i < chunks * groups; ++i) {
        const int c = i / groups, q = i % groups;
        const int begin = m0 + part_begin(bands, chunks, c) * kCell;
        const int end = m0 + part_begin(bands, chunks, c + 1) * kCell;
        const int q0 = p0 + part_begin(p1 - p0, groups, q), q1 = p0 + part_begin(p1 - p0, groups, q + 1);
        QuantGroup<kPlanes, kNibbles, kHow>(g, epilogue, buffers, resident, begin, end < m1 ? end : m1, q0, q1).run();
    }
}

}  // namespace
}  // namespace di
