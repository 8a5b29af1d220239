// x[M,K] · w[N,K]ᵀ in bf16 with VDPBF16PS: a block of a panel stays in L1 while a chunk of rows passes over it.
#pragma once
#include "../generic/epilogue.h"
#include "pairs.h"

namespace di {
namespace {

constexpr int kBlockCells = 12;            // cells of K in a block: 24 KiB of a panel
constexpr size_t kChunkBytes = 640 << 10;  // rows and their sums, to stay in L2
constexpr int kCellLines = kCellSize * sizeof(bf16) / 64;

// A chunk of rows in pairs, and their sums. The rows pass over a block in groups of up to kPairRows.
struct PairedRows {
    bf16* x;             // group after group, [K/32][rows of the group][32]
    float *sums, *part;  // [count][32]
    int count, groups;

    PairedRows(float* scratch, int rows)
        : sums(scratch), part(sums + rows * kCell), count(rows), groups((rows + kPairRows - 1) / kPairRows) {
        x = reinterpret_cast<bf16*>(part + rows * kCell);
    }
    int begin(int group) const { return count * group / groups; }
    int size(int group) const { return begin(group + 1) - begin(group); }
};

DI_INLINE void take_rows(const Gemm& g, int m, const PairedRows& rows) {
    bf16* to = rows.x;
    for (int i = 0; i < rows.groups; ++i) {
        const int n = rows.size(i);
        for (int j = 0; j < n; ++j) {
            const bf16* from = g.x.row<const bf16>(m + rows.begin(i) + j);
            for (int c = 0; c < g.k_cells; ++c, from += g.x.step())
                _mm512_storeu_si512(to + (c * n + j) * kCell, paired(_mm512_loadu_si512(from)));
        }
        to += static_cast<size_t>(n) * g.k_cells * kCell;
    }
}

// sums[kRows][32] += x[kRows, 32 · cells] · some cells of a panel, from zero on where they are the `first`. Fetches
// kLines lines a cell from `ahead` on.
template <int kRows, int kLines>
DI_NOINLINE void multiply_cells(const bf16* x, const bf16* cell, int cells, bool first, const bf16* ahead,
                                float* sums) {
    Vec acc[kRows][2];
    for (int i = 0; i < 2 * kRows; ++i) acc[i / 2][i % 2] = first ? Vec::zero() : Vec::load(sums + 16 * i);
    for (int c = 0; c < cells; ++c, x += kRows * kCell, cell += kCellSize) {
        add_cell<kRows, kCell>(x, cell, acc, [&](int i) {
            for (int l = kLines * i / kCellSteps; l < kLines * (i + 1) / kCellSteps; ++l, ahead += 32)
                __builtin_prefetch(ahead);
        });
    }
    for (int i = 0; i < 2 * kRows; ++i) acc[i / 2][i % 2].store(sums + 16 * i);
}

// A chunk against cells [c, c + cells) of a panel. The next block is fetched meanwhile, by the first 32 / kLines
// groups; with 32 lines a cell the first group fetches its own block, a few cells ahead.
template <int kLines>
DI_INLINE void multiply_block(const PairedRows& rows, int k_cells, const bf16* panel, int c, int cells, bool first,
                              float* sums) {
    constexpr int kFetching = kCellLines / kLines;
    const bf16* cell = panel + c * kCellSize;
    for (int i = 0; i < rows.groups; ++i) {
        const int r = rows.begin(i), n = rows.size(i);
        const bf16* x = rows.x + (static_cast<size_t>(r) * k_cells + static_cast<size_t>(n) * c) * kCell;
        const bf16* ahead =
            kFetching == 1 ? cell + 4 * kCellSize : cell + (kFetching + i) * cells * (kCellSize / kFetching);
        with_rows(n, [&](auto count) {
            constexpr int kRows = decltype(count)::value;
            i < kFetching ? multiply_cells<kRows, kLines>(x, cell, cells, first, ahead, sums + r * kCell)
                          : multiply_cells<kRows, 0>(x, cell, cells, first, cell, sums + r * kCell);
        });
    }
}

template <int kLines>
DI_INLINE void multiply_panel(const Gemm& g, int m, const PairedRows& rows, int p) {
    const bf16* panel = static_cast<const bf16*>(g.w) + static_cast<size_t>(p) * g.k_cells * kCellSize;
    for (int s = 0; s < segments(g.k_cells); ++s) {
        const int begin = segment_begin(g.k_cells, s), cells = segment_begin(g.k_cells, s + 1) - begin;
        const int blocks = (cells + kBlockCells - 1) / kBlockCells;
        float* sums = s == 0 ? rows.sums : rows.part;
        for (int b = 0; b < blocks; ++b) {
            const int c = begin + cells * b / blocks, end = begin + cells * (b + 1) / blocks;
            multiply_block<kLines>(rows, g.k_cells, panel, c, end - c, b == 0, sums);
        }
        for (int i = 0; s > 0 && i < rows.count * kCell; i += 16)
            (Vec::load(rows.sums + i) + Vec::load(rows.part + i)).store(rows.sums + i);
    }
    for (int r = 0; r < rows.count; r += kCell)
        finish(g, m + r, rows.count - r < kCell ? rows.count - r : kCell, p, rows.sums + r * kCell);
}

// One row is as fast as memory with fp32 sums alone.
void gemm_bf16_pairs(const Gemm& g, int m0, int m1, int p0, int p1) {
    if (m1 - m0 == 1) return avx512_table()->gemm_bf16(g, m0, m1, p0, p1);
    const size_t row_bytes = static_cast<size_t>(g.k_cells) * kCell * sizeof(bf16) + 2 * kCell * sizeof(float);
    const int fit = static_cast<int>(kChunkBytes / row_bytes) / kCell * kCell, most = fit > kCell ? fit : kCell;
    for (int m = m0; m < m1; m += most) {
        const PairedRows rows(g.scratch, m1 - m < most ? m1 - m : most);
        take_rows(g, m, rows);
        for (int p = p0; p < p1; ++p) {
            if (rows.groups >= 16) {
                multiply_panel<2>(g, m, rows, p);
            } else if (rows.groups >= 8) {
                multiply_panel<4>(g, m, rows, p);
            } else if (rows.groups >= 4) {
                multiply_panel<8>(g, m, rows, p);
            } else if (rows.groups >= 2) {
                multiply_panel<16>(g, m, rows, p);
            } else {
                multiply_panel<kCellLines>(g, m, rows, p);
            }
        }
    }
}

}  // namespace
}  // namespace di
