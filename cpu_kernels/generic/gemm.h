// x[M,K] · w[N,K]ᵀ with fused multiply-add, in the summation order of docs/arithmetic.md. One routine serves decode,
// where the panels stream from memory once, and prefill, where blocks of rows pass over a panel in the cache.
#pragma once
#include "../kernels.h"
#include "epilogue.h"
#include "inline.h"

namespace di {
namespace {

// A cell of a panel, by weight type: line r holds the columns k = 2r and k = 2r + 1 of 16 outputs.
struct CellF32 {
    using T = float;
    static DI_INLINE void line(const T* cell, int half, int r, Vec& even, Vec& odd) {
        even = Vec::load(cell + 2 * r * kCell + 16 * half);
        odd = Vec::load(cell + (2 * r + 1) * kCell + 16 * half);
    }
};
struct CellF16 {
    using T = f16;
    static DI_INLINE void line(const T* cell, int half, int r, Vec& even, Vec& odd) {
        Vec::load_pairs_f16(cell + (16 * half + r) * 32, even, odd);
    }
};
struct CellBf16 {
    using T = bf16;
    static DI_INLINE void line(const T* cell, int half, int r, Vec& even, Vec& odd) {
        Vec::load_pairs_bf16(cell + (16 * half + r) * 32, even, odd);
    }
};

// Rows of one band in fp32: element (m, k) is x[(k / 32) * step + 32 * m + k % 32].
struct Rows {
    const float* x;
    size_t step;
};

// One cell of a panel, kHalves halves of it from `half` on: acc[half][m] += x · cell.
template <class Cell, int R, int kHalves>
DI_INLINE void multiply_cell(const float* x, const typename Cell::T* cell, int half, bool cold, Vec (*acc)[R]) {
    Vec te[kHalves][R], to[kHalves][R];
    for (int i = 0; i < kHalves * R; ++i) te[i / R][i % R] = to[i / R][i % R] = Vec::zero();
#pragma GCC unroll 4
    for (int r = 0; r < 16; ++r) {
        for (int h = 0; h < kHalves; ++h) {
            Vec even, odd;
            Cell::line(cell, half + h, r, even, odd);
            for (int m = 0; m < R; ++m) {
                te[h][m] = fma(Vec::set(x[m * kCell + 2 * r]), even, te[h][m]);
                to[h][m] = fma(Vec::set(x[m * kCell + 2 * r + 1]), odd, to[h][m]);
            }
        }
        if (cold) {
            constexpr size_t kAhead = kHalves == 2 ? 1024 : 4096;  // bytes; few rows need little beyond the hardware's
            constexpr size_t kLineBytes = kHalves * 32 * sizeof(typename Cell::T);
            const char* ahead = reinterpret_cast<const char*>(cell) + kAhead + (16 * half / kHalves + r) * kLineBytes;
            for (size_t i = 0; i < kLineBytes; i += 64)
                R == 1 ? prefetch_in_place(ahead + i) : __builtin_prefetch(ahead + i);
        }
    }
    for (int h = 0; h < kHalves; ++h) {
        for (int m = 0; m < R; ++m) acc[half + h][m] = acc[half + h][m] + (te[h][m] + to[h][m]);
    }
}

// sums[R][32] = x[R,K] · panelᵀ. `cold`: the panel comes from memory.
template <class Cell, int R>
DI_NOINLINE void multiply_rows(const Rows& rows, const typename Cell::T* panel, int cells, bool cold, float* sums) {
    constexpr int kHalves = 2 * R <= Vec::kGemmRows ? 2 : 1;  // as many chains as there are registers
    const typename Cell::T* cell = panel;
    const float* x = rows.x;
    for (int s = 0; s < segments(cells); ++s) {
        Vec acc[2][R];
        for (int m = 0; m < R; ++m) acc[0][m] = acc[1][m] = Vec::zero();
        for (int c = segment_begin(cells, s); c < segment_begin(cells, s + 1); ++c, cell += kCellSize, x += rows.step) {
            for (int h = 0; h < 2; h += kHalves) multiply_cell<Cell, R, kHalves>(x, cell, h, cold, acc);
        }
        for (int i = 0; i < 2 * R; ++i) {
            float* sum = sums + i / 2 * kCell + i % 2 * 16;
            (s == 0 ? acc[i % 2][i / 2] : Vec::load(sum) + acc[i % 2][i / 2]).store(sum);
        }
    }
}

// The same for a number of rows that is known at run time, 1 <= count <= R.
template <class Cell, int R = Vec::kGemmRows>
DI_INLINE void multiply(const Rows& rows, int count, const typename Cell::T* panel, int cells, bool cold, float* sums) {
    if (count >= R) return multiply_rows<Cell, R>(rows, panel, cells, cold, sums);
    if constexpr (R > 1) multiply<Cell, R - 1>(rows, count, panel, cells, cold, sums);
}

// Rows [m, m + count) of panel p, all of one band.
template <class Cell>
DI_INLINE void gemm_rows(const Gemm& g, const Rows& rows, int m, int count, int p, bool cold) {
    const auto* panel = static_cast<const typename Cell::T*>(g.w) + static_cast<size_t>(p) * g.k_cells * kCellSize;
    for (int r = 0; r < count; r += Vec::kGemmRows) {
        const int n = count - r < Vec::kGemmRows ? count - r : Vec::kGemmRows;
        alignas(64) float sums[Vec::kGemmRows * kCell];
        multiply<Cell>({rows.x + r * kCell, rows.step}, n, panel, g.k_cells, cold && r == 0, sums);
        finish(g, m + r, n, p, sums);
    }
}

// Copies bf16 rows [m, m + count) of one band as fp32 cells [K/32][count][32].
DI_INLINE void widen_rows(const Gemm& g, int m, int count, float* to) {
    const bf16* from = g.x.row<const bf16>(m);
    for (int c = 0; c < g.k_cells; ++c, from += g.x.step()) {
        for (int i = 0; i < count * kCell; i += 16, to += 16) Vec::load_bf16(from + i).store(to);
    }
}

// A segment's part of 32 sums of a row.
DI_INLINE void add_part(float* sums, const Vec (&part)[2][1], bool first) {
    (first ? part[0][0] : Vec::load(sums) + part[0][0]).store(sums);
    (first ? part[1][0] : Vec::load(sums + 16) + part[1][0]).store(sums + 16);
}

// One row and panels [p0, p1): of the panels, the two halves go side by side, cell by cell, each in the order of
// memory; two streams bring more than one. No sum is chosen by an index that is known at run time alone: compilers
// keep them in registers then.
template <class Cell>
DI_NOINLINE void gemm_row(const Gemm& g, const Rows& row, int m, int p0, int p1) {
    const int half = (p1 - p0 + 1) / 2;
    const auto panel = [&](int p) {
        return static_cast<const typename Cell::T*>(g.w) + static_cast<size_t>(p) * g.k_cells * kCellSize;
    };
    for (int p = p0; p < p0 + half; ++p) {
        const bool two = p + half < p1;
        const typename Cell::T *first = panel(p), *second = panel(two ? p + half : p);
        alignas(64) float sums[2][kCell];
        const float* x = row.x;
        for (int s = 0; s < segments(g.k_cells); ++s) {
            Vec one[2][1] = {{Vec::zero()}, {Vec::zero()}}, other[2][1] = {{Vec::zero()}, {Vec::zero()}};
            for (int c = segment_begin(g.k_cells, s); c < segment_begin(g.k_cells, s + 1); ++c, x += row.step) {
                multiply_cell<Cell, 1, 1>(x, first, 0, true, one);
                multiply_cell<Cell, 1, 1>(x, first, 1, true, one);
                first += kCellSize;
                if (!two) continue;
                multiply_cell<Cell, 1, 1>(x, second, 0, true, other);
                multiply_cell<Cell, 1, 1>(x, second, 1, true, other);
                second += kCellSize;
            }
            add_part(sums[0], one, s == 0);
            add_part(sums[1], other, s == 0);
        }
        finish(g, m, 1, p, sums[0]);
        if (two) finish(g, m, 1, p + half, sums[1]);
    }
}

// Walks rows [m0, m1) in chunks that fit the scratch as fp32 (and so the L2 cache), each over all panels.
template <class Cell, bool kWiden>
DI_INLINE void gemm(const Gemm& g, int m0, int m1, int p0, int p1) {
    const size_t row_floats = static_cast<size_t>(g.k_cells) * kCell;
    int fit = static_cast<int>(Gemm::scratch_floats() / row_floats);
    fit = fit >= kCell ? fit / kCell * kCell : fit > 0 ? fit : 1;
    for (int m = m0; m < m1;) {
        const int room = fit < kCell ? kCell - m % kCell : m1 - m;
        int end = m + (fit < room ? fit : room);
        if (end > m1) end = m1;
        if (kWiden) {
            for (int b = m; b < end; b += kCell) {
                widen_rows(g, b, end - b < kCell ? end - b : kCell, g.scratch + (b - m) * row_floats);
            }
        }
        const auto rows_of = [&](int b, int count) {
            return kWiden ? Rows{g.scratch + (b - m) * row_floats, static_cast<size_t>(count) * kCell}
                          : Rows{g.x.row<const float>(b), g.x.step()};
        };
        if (end - m == 1) gemm_row<Cell>(g, rows_of(m, 1), m, p0, p1);
        for (int p = p0; end - m > 1 && p < p1; ++p) {
            for (int b = m; b < end; b += kCell) {
                const int count = end - b < kCell ? end - b : kCell;
                gemm_rows<Cell>(g, rows_of(b, count), b, count, p, b == m);
            }
        }
        m = end;
    }
}

void gemm_f32(const Gemm& g, int m0, int m1, int p0, int p1) { gemm<CellF32, false>(g, m0, m1, p0, p1); }
void gemm_f16(const Gemm& g, int m0, int m1, int p0, int p1) { gemm<CellF16, false>(g, m0, m1, p0, p1); }
void gemm_bf16(const Gemm& g, int m0, int m1, int p0, int p1) { gemm<CellBf16, true>(g, m0, m1, p0, p1); }

}  // namespace
}  // namespace di
