// x[M,K] · w[N,K]ᵀ in bf16 on AMX tiles. Up to 32 rows stream the panels from memory; more go through cache blocks.
#pragma once
#include "../generic/epilogue.h"
#include "tile.h"

namespace di {
namespace {

constexpr int kBlockCells = 20;   // cells of K in a block: 40 KiB of one panel stay in L1
constexpr int kGroupPanels = 16;  // panels of a group: they share the rows' block in L2
constexpr int kChunkBands = 16;   // bands of 32 rows of a chunk
constexpr size_t kCellBytes = kCellSize * sizeof(bf16);
constexpr size_t kStreamAhead = 1024;  // bytes between a panel's prefetch and its use
constexpr long kSumStride = kCell * sizeof(float);

static_assert(2 * kGroupPanels * kChunkBands * kCellSize <= Gemm::scratch_floats());

DI_INLINE const char* panel_of(const Gemm& g, int p) {
    return static_cast<const char*>(g.w) + static_cast<size_t>(p) * g.k_cells * kCellBytes;
}

// Even parts: part i of `count` things in `parts`.
DI_INLINE int part_begin(int count, int parts, int i) {
    return static_cast<int>(static_cast<int64_t>(count) * i / parts);
}
DI_INLINE int parts_of(int count, int largest) { return (count + largest - 1) / largest; }

// to = from + to
DI_INLINE void add_sums(float* to, const float* from, int rows) {
    for (int i = 0; i < rows * kCell; i += 16) (Vec::load(from + i) + Vec::load(to + i)).store(to + i);
}

template <int kLow, int kHigh>
DI_INLINE void store_sums(float* sums) {
    tile_store<kLow>(sums, kSumStride);
    tile_store<kHigh>(sums + 16, kSumStride);
}

// A cell of a panel against the rows in tile 0 (and tile 1): sums in the tiles kSum, kSum + 1 (and 6, 7).
template <int kSum, bool kTwo>
DI_INLINE void multiply_cell(const char* cell) {
    tile_load<2>(cell);
    tile_multiply_bf16<kSum, 0, 2>();
    tile_load<3>(cell + kTileBytes);
    tile_multiply_bf16<kSum + 1, 0, 3>();
    if (kTwo) {
        tile_multiply_bf16<6, 1, 2>();
        tile_multiply_bf16<7, 1, 3>();
    }
}

DI_INLINE void prefetch_cell(const char* cell) {
    for (size_t i = 0; i < kCellBytes; i += 64) __builtin_prefetch(cell + i);
}

// Up to 16 rows against kPanels (1 or 2) panels: two streams from memory fill the line buffers better than one.
template <int kPanels>
DI_INLINE void stream_16(const Gemm& g, int m, int rows, const int* p) {
    alignas(64) float sums[2][16 * kCell], part[2][16 * kCell];
    const bf16* x = g.x.row<const bf16>(m);
    const char* panel[2] = {panel_of(g, p[0]), panel_of(g, p[kPanels - 1])};
    for (int s = 0; s < segments(g.k_cells); ++s) {
        tile_zero<4>(), tile_zero<5>(), tile_zero<6>(), tile_zero<7>();
        for (int c = segment_begin(g.k_cells, s); c < segment_begin(g.k_cells, s + 1); ++c) {
            tile_load<0>(x + c * g.x.step());
            for (int i = 0; i < kPanels; ++i) prefetch_cell(panel[i] + c * kCellBytes + kStreamAhead);
            multiply_cell<4, false>(panel[0] + c * kCellBytes);
            if (kPanels == 2) multiply_cell<6, false>(panel[1] + c * kCellBytes);
        }
        float (*to)[16 * kCell] = s == 0 ? sums : part;
        store_sums<4, 5>(to[0]);
        if (kPanels == 2) store_sums<6, 7>(to[1]);
        for (int i = 0; s > 0 && i < kPanels; ++i) add_sums(sums[i], part[i], rows);
    }
    for (int i = 0; i < kPanels; ++i) finish(g, m, rows, p[i], sums[i]);
}

// 17 to 32 rows against one panel.
DI_INLINE void stream_32(const Gemm& g, int m, int rows, int p) {
    alignas(64) float sums[kCellSize], part[kCellSize];
    const bf16* x = g.x.row<const bf16>(m);
    const char* cell = panel_of(g, p);
    for (int s = 0; s < segments(g.k_cells); ++s) {
        tile_zero<4>(), tile_zero<5>(), tile_zero<6>(), tile_zero<7>();
        for (int c = segment_begin(g.k_cells, s); c < segment_begin(g.k_cells, s + 1); ++c) {
            tile_load<0>(x);
            tile_load<1>(x + 16 * kCell);
            prefetch_cell(cell + kStreamAhead);
            multiply_cell<4, true>(cell);
            x += g.x.step();
            cell += kCellBytes;
        }
        float* to = s == 0 ? sums : part;
        store_sums<4, 5>(to);
        store_sums<6, 7>(to + 16 * kCell);
        if (s > 0) add_sums(sums, part, rows);
    }
    finish(g, m, rows, p, sums);
}

DI_INLINE void gemm_stream(const Gemm& g, int m, int rows, int p0, int p1) {
    if (rows > 16) {
        configure_tiles(16, rows - 16);
        for (int p = p0; p < p1; ++p) stream_32(g, m, rows, p);
        return;
    }
    configure_tiles(rows, rows);
    const int half = (p1 - p0) / 2;  // each stream is contiguous, so that prefetching never jumps
    for (int i = 0; i < half; ++i) {
        const int pair[2] = {p0 + i, p0 + half + i};
        stream_16<2>(g, m, rows, pair);
    }
    const int last = p1 - 1;
    if ((p1 - p0) % 2) stream_16<1>(g, m, rows, &last);
}

// Cache lines to fetch, a few at a time between tile instructions.
struct Lines {
    const char* at;
    const char* end;

    template <int kWrite, int kLocality>
    DI_INLINE void fetch(int n) {
        for (; n > 0 && at < end; --n, at += 64) __builtin_prefetch(at, kWrite, kLocality);
    }
    // Lines a step, to be done in n steps.
    int share(int n) const { return static_cast<int>((end - at) / 64 + n - 1) / n; }
};

// A block of the sums: `cells` cells of K for one panel and one band.
struct Block {
    const char* x;
    const char* w;
    int cells;
    const float* from;  // running sums as four tiles, or null: start at zero
};

template <bool kTwo>
DI_INLINE void run_block(const Block& b, Lines& next_w, int w_lines, Lines next_x, Lines out, PendingRows& pending) {
    const int x_lines = next_x.share(b.cells), out_lines = out.share(b.cells);
    const int pending_rows = parts_of(pending.rows, b.cells);
    if (b.from) {
        tile_load_stream<4>(b.from), tile_load_stream<5>(b.from + 256);
        if (kTwo) tile_load_stream<6>(b.from + 512), tile_load_stream<7>(b.from + 768);
    } else {
        tile_zero<4>(), tile_zero<5>(), tile_zero<6>(), tile_zero<7>();
    }
    const char *x = b.x, *w = b.w;
    for (int c = 0; c < b.cells; ++c, x += kCellBytes, w += kCellBytes) {
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
        next_w.fetch<0, 2>(w_lines);
        next_x.fetch<0, 2>(x_lines);
        out.fetch<1, 3>(out_lines);
        pending.advance(pending_rows);
    }
    pending.finish_all();
}

// Two blocks of sums, in turn: one is finished while the other is stored.
struct KeptSums {
    alignas(64) float block[2][kCellSize];
    int turn = 0;

    float* next() { return block[turn ^= 1]; }
};

// One group of panels [q0, q1) against one chunk of rows [m0, m1).
struct Group {
    const Gemm& g;
    int m0, m1, q0, q1;
    // The rows of the block before wait here and are finished between the tile instructions of the next one.
    PendingRows& pending;
    KeptSums& kept;

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
        Lines next_w{w_next, w_next + cells * kCellBytes};
        const int w_lines = next_w.share(bands() * cells), next_cells = step.next1 - step.next0;
        // This panel's part of the next block of x.
        const int x0 = step.next0 + part_begin(next_cells, q1 - q0, p - q0);
        const int x1 = step.next0 + part_begin(next_cells, q1 - q0, p - q0 + 1);
        for (int i = 0; i < bands(); ++i) {
            const int m = m0 + i * kCell, rows = m1 - m < kCell ? m1 - m : kCell;
            const Block block{x(i, step.k0), w, cells, step.first ? nullptr : acc(p, i)};
            const Lines next_x{x(i, x0), x(i, x1)}, out = output_lines(step, m, p, i);
            if (rows > 16) {
                run_block<true>(block, next_w, w_lines, next_x, out, pending);
            } else {
                run_block<false>(block, next_w, w_lines, next_x, out, pending);
            }
            store(step, m, rows, p, i);
        }
    }

    Lines output_lines(const Step& step, int m, int p, int band) const {
        const char* at = reinterpret_cast<const char*>(acc(p, band));
        size_t bytes = kCellSize * sizeof(float);
        if (step.final) {
            const bool wide = g.y.dtype == DType::F32;
            bytes = kCellSize * size_of(g.y.dtype);
            at = wide ? reinterpret_cast<const char*>(OutputRows<float>(g, m, p).y)
                      : reinterpret_cast<const char*>(OutputRows<bf16>(g, m, p).y);
        }
        return {at, at + bytes};
    }

    // The sums leave the tiles: as they are within a segment, merged into the total at its end, finished at K's end.
    DI_INLINE void store(const Step& step, int m, int rows, int p, int band) {
        if (!step.last) {
            float* to = acc(p, band);
            tile_store<4>(to), tile_store<5>(to + 256), tile_store<6>(to + 512), tile_store<7>(to + 768);
            return;
        }
        float* sums = kept.next();
        float* to = step.segment == 0 && !step.final ? total(p, band) : sums;
        store_sums<4, 5>(to);
        store_sums<6, 7>(to + 16 * kCell);
        if (step.segment > 0 && step.final) add_sums(sums, total(p, band), kCell);
        if (step.segment > 0 && !step.final) add_sums(total(p, band), sums, kCell);
        if (step.final) pending.begin(g, m, rows, p, sums);
    }
};

DI_INLINE void gemm_blocked(const Gemm& g, int m0, int m1, int p0, int p1) {
    configure_tiles(16, 16);
    PendingRows pending;
    KeptSums kept;
    const int bands = (m1 - m0 + kCell - 1) / kCell;
    const int chunks = parts_of(bands, kChunkBands), groups = parts_of(p1 - p0, kGroupPanels);
    for (int c = 0; c < chunks; ++c) {
        const int begin = m0 + part_begin(bands, chunks, c) * kCell;
        const int end = m0 + part_begin(bands, chunks, c + 1) * kCell;
        for (int q = 0; q < groups; ++q) {
            const int q0 = p0 + part_begin(p1 - p0, groups, q), q1 = p0 + part_begin(p1 - p0, groups, q + 1);
            Group{g, begin, end < m1 ? end : m1, q0, q1, pending, kept}.run();
        }
    }
    pending.finish_all();
}

void gemm_bf16_amx(const Gemm& g, int m0, int m1, int p0, int p1) {
    m1 - m0 <= kCell ? gemm_stream(g, m0, m1 - m0, p0, p1) : gemm_blocked(g, m0, m1, p0, p1);
}

double matrix_peak_amx(int64_t rounds) {
    configure_tiles(16, 16);
    tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
    tile_zero<4>(), tile_zero<5>(), tile_zero<6>(), tile_zero<7>();
    for (int64_t i = 0; i < rounds; ++i) {
        tile_multiply_bf16<4, 0, 2>();
        tile_multiply_bf16<5, 0, 3>();
        tile_multiply_bf16<6, 1, 2>();
        tile_multiply_bf16<7, 1, 3>();
    }
    release_tiles();
    return static_cast<double>(rounds) * 4 * (2.0 * 16 * 16 * 32);
}

}  // namespace
}  // namespace di
