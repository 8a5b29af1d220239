// x[M,K] · w[N,K]ᵀ with quantized weights: exact integer sums a group, one rounding each, as in docs/arithmetic.md.
#pragma once
#include "../kernels.h"
#include "dot.h"
#include "epilogue.h"
#include "inline.h"

namespace di {
namespace {

// The epilogue's view of a quantized product.
DI_INLINE Gemm epilogue_of(const GemmQ& g) {
    Gemm e{};
    e.y = g.y;
    e.bias = g.bias;
    e.residual = g.residual;
    e.residual_view = g.residual_view;
    e.act = g.act;
    e.gated = g.gated;
    return e;
}

DI_INLINE const uint8_t* panel_codes(const QuantWeight& w, int p) {
    return w.codes + static_cast<size_t>(p) * w.cells * code_bytes(w.bits == DType::U4);
}

// Scales and zero points of one group of a panel.
struct PanelGrid {
    alignas(64) float scales[kCell];
    alignas(64) int32_t zeros[kCell];
};

DI_INLINE void load_grid(const QuantWeight& w, int p, int group, PanelGrid& grid) {
    const size_t at = (static_cast<size_t>(p) * w.groups + group) * kCell;
    for (int i = 0; i < kCell; i += 16) {
        const Vec scales = w.scale_dtype == DType::F32   ? Vec::load(static_cast<const float*>(w.scales) + at + i)
                           : w.scale_dtype == DType::F16 ? Vec::load_f16(static_cast<const f16*>(w.scales) + at + i)
                                                         : Vec::load_bf16(static_cast<const bf16*>(w.scales) + at + i);
        scales.store(grid.scales + i);
    }
    for (int i = 0; i < kCell; ++i) grid.zeros[i] = w.zeros[at + i];
}

// Whether S - zero · Σa stays within int32: |a| <= 32512 or 127, and a code is at most a step of 1 further from zero
// than 4 or 8 bits say.
DI_INLINE bool fits_int32(const QuantWeight& w, int planes) {
    const int64_t distance = w.bits == DType::U4 ? 16 : 256, largest = planes == 2 ? 32512 : 127;
    return distance * largest * w.group < int64_t{1} << 31;
}

// total[32] = fma(T, sw · sx, total), T = 256 · high + low - zero · Σa rounded once. high: null with one plane.
DI_INLINE void combine(const int32_t* high, const int32_t* low, const PanelGrid& grid, float scale, int32_t sum,
                       bool fits, float* total) {
    alignas(64) float t[kCell];
    if (fits) {
        const auto u = [](int32_t x) { return static_cast<uint32_t>(x); };  // wraps on its way to a sum that fits
        for (int n = 0; n < kCell; ++n) {
            const uint32_t s = (high ? u(high[n]) << 8 : 0) + u(low[n]);
            t[n] = static_cast<float>(static_cast<int32_t>(s - u(grid.zeros[n]) * u(sum)));
        }
    } else {
        const double minus = -static_cast<double>(sum);
        for (int n = 0; n < kCell; ++n) {
            const double s = static_cast<double>(high[n]) * 256.0 + static_cast<double>(low[n]);
            t[n] = static_cast<float>(s + minus * static_cast<double>(grid.zeros[n]));
        }
    }
    for (int i = 0; i < kCell; i += 16) {
        const Vec scales = Vec::load(grid.scales + i) * Vec::set(scale);
        fma(Vec::load(t + i), scales, Vec::load(total + i)).store(total + i);
    }
}

// Rows [m, m + kRows) of one band times one panel, or a single row times two: cell by cell in turns, as two streams
// bring more than one.
template <class Dot, int kRows, int kPlanes, bool kNibbles>
DI_NOINLINE void multiply_quant(const GemmQ& g, const Operand& x, int m, const int* p, int panels, bool cold) {
    constexpr int kPanels = kRows == 1 ? 2 : 1;
    alignas(64) float totals[kPanels][kRows][kCell] = {};
    const bool fits = fits_int32(g.w, kPlanes);
    const int cells = g.w.group_cells();
    const uint8_t* codes[] = {panel_codes(g.w, p[0]), panel_codes(g.w, p[panels - 1])};
    const float* rows = g.grid.row<const float>(m);  // of the grid; one is 32 floats
    const auto column = [&](int c) { return rows + c / kCell * g.grid.step() + c % kCell; };
    Operand at = x;
    for (int group = 0; group < g.w.groups; ++group) {
        const int left = g.w.cells - group * cells, n = left < cells ? left : cells;
        alignas(64) int32_t sums[kPanels][kPlanes][kRows][kCell] = {};
        const int step = kRows == 1 ? 1 : n;
        for (int c = 0; c < n; c += step, at.x += step * x.cell) {
            for (int j = 0; j < panels; ++j) {
                Dot::template add<kRows, kPlanes, kNibbles>(at, codes[j], step, cold, sums[j][0][0]);
                codes[j] += step * code_bytes(kNibbles);
            }
        }
        const float *scales = column(group), *integers = column(g.w.groups + group);
        for (int j = 0; j < panels; ++j) {
            PanelGrid grid;
            load_grid(g.w, p[j], group, grid);
            for (int i = 0; i < kRows; ++i) {
                int32_t sum;
                __builtin_memcpy(&sum, integers + i * kCell, sizeof sum);
                const int32_t* high = kPlanes == 2 ? sums[j][0][i] : nullptr;
                combine(high, sums[j][kPlanes - 1][i], grid, scales[i * kCell], sum, fits, totals[j][i]);
            }
        }
    }
    for (int j = 0; j < panels; ++j) finish(epilogue_of(g), m, kRows, p[j], totals[j][0]);
}

// The same for `count` rows and one panel.
template <class Dot, int kPlanes, bool kNibbles, int kRows>
DI_INLINE void multiply_quant_rows(const GemmQ& g, Operand x, int m, int count, int p, bool cold) {
    for (; count >= kRows; m += kRows, count -= kRows, cold = false) {
        multiply_quant<Dot, kRows, kPlanes, kNibbles>(g, x, m, &p, 1, cold);
        x.x += kRows * kQuantCell * (Dot::kWords ? 2 : 1);
    }
    if constexpr (kRows > 1) {
        if (count > 0) multiply_quant_rows<Dot, kPlanes, kNibbles, kRows / 2>(g, x, m, count, p, cold);
    }
}

// Rows [m, m + count) of one band as words: [cells][count][64], in the order of Dot.
template <class Dot>
DI_INLINE void join_planes(const Planes& x, int m, int count, int16_t* to) {
    for (int c = 0; c < x.cells; ++c) {
        for (int i = 0; i < count; ++i, to += kQuantCell) {
            Dot::join(x.count == 2 ? x.row(m + i, c, 0) : nullptr, x.row(m + i, c, x.count - 1), to);
        }
    }
}

// Walks rows [m0, m1) in chunks that stay in the L2 cache, each over all panels.
template <class Dot, int kPlanes, bool kNibbles>
DI_NOINLINE void gemm_quant_as(const GemmQ& g, int m0, int m1, int p0, int p1) {
    constexpr int kRows = Dot::kWords ? Dot::kLines : Dot::kLines / kPlanes;
    const size_t row_bytes = static_cast<size_t>(g.w.cells) * kQuantCell * (Dot::kWords ? 2 : kPlanes);
    int fit = static_cast<int>((size_t{1} << 20) / row_bytes);
    fit = fit >= kCell ? fit / kCell * kCell : Dot::kWords ? (fit > 0 ? fit : 1) : kCell;
    auto* words = reinterpret_cast<int16_t*>(g.scratch);
    for (int m = m0; m < m1;) {
        const int room = fit < kCell ? kCell - m % kCell : m1 - m;
        int end = m + (fit < room ? fit : room);
        if (end > m1) end = m1;
        const auto band_of = [&](int b) { return words + (b - m) * row_bytes / 2; };
        const auto rows_of = [&](int b) { return end - b < kCell ? end - b : kCell; };
        if constexpr (Dot::kWords) {
            for (int b = m; b < end; b += kCell) join_planes<Dot>(g.x, b, rows_of(b), band_of(b));
        }
        for (int p = p0; p < p1; ++p) {
            for (int b = m; b < end; b += kCell) {
                const size_t band = static_cast<size_t>(g.x.band()) * kQuantCell;
                const Operand x = Dot::kWords ? Operand{reinterpret_cast<const int8_t*>(band_of(b)),
                                                        static_cast<size_t>(rows_of(b)) * 2 * kQuantCell, 0}
                                              : Operand{g.x.row(b, 0, 0), band * kPlanes, band};
                multiply_quant_rows<Dot, kPlanes, kNibbles, kRows>(g, x, b, rows_of(b), p, b == m);
            }
        }
        m = end;
    }
}

// One row: of the panels, the two halves go side by side.
template <class Dot, int kPlanes, bool kNibbles>
DI_NOINLINE void gemm_quant_row(const GemmQ& g, int m, int p0, int p1) {
    const size_t band = static_cast<size_t>(g.x.band()) * kQuantCell;
    Operand x{g.x.row(m, 0, 0), band * kPlanes, band};
    if constexpr (Dot::kWords) {
        auto* words = reinterpret_cast<int16_t*>(g.scratch);
        join_planes<Dot>(g.x, m, 1, words);
        x = Operand{reinterpret_cast<const int8_t*>(words), 2 * kQuantCell, 0};
    }
    const int half = (p1 - p0 + 1) / 2;
    for (int p = p0; p < p0 + half; ++p) {
        const int pair[] = {p, p + half};
        multiply_quant<Dot, 1, kPlanes, kNibbles>(g, x, m, pair, p + half < p1 ? 2 : 1, true);
    }
}

template <class Dot, int kPlanes, bool kNibbles>
DI_INLINE void gemm_quant_any(const GemmQ& g, int m0, int m1, int p0, int p1) {
    if (m1 - m0 > 1) return gemm_quant_as<Dot, kPlanes, kNibbles>(g, m0, m1, p0, p1);
    if constexpr (kNibbles) {
        gemm_quant_row<typename Dot::Nibbles, kPlanes, true>(g, m0, p0, p1);
    } else {
        gemm_quant_row<Dot, kPlanes, false>(g, m0, p0, p1);
    }
}

template <class Dot>
void gemm_quant(const GemmQ& g, int m0, int m1, int p0, int p1) {
    const bool nibbles = g.w.bits == DType::U4;
    if (g.x.count == 2) {
        nibbles ? gemm_quant_any<Dot, 2, true>(g, m0, m1, p0, p1) : gemm_quant_any<Dot, 2, false>(g, m0, m1, p0, p1);
    } else {
        nibbles ? gemm_quant_any<Dot, 1, true>(g, m0, m1, p0, p1) : gemm_quant_any<Dot, 1, false>(g, m0, m1, p0, p1);
    }
}

}  // namespace
}  // namespace di
