// x[M,K] · w[N,K]ᵀ with quantized weights on AMX tiles of bytes. A few rows leave the tiles alone; up to 16 stream the
// panels from memory; more go through cache blocks.
//
// Codes of 8 bits are tiles as they lie. Codes of 4 bits lose their zero point on their way to signed bytes, and the
// sums need no correction.
#pragma once
#include "../avx512/bytes.h"
#include "../generic/gemm_quant.h"
#include "gemm_bf16.h"
#include "gemm_quant_blocked.h"

namespace di {
namespace {

constexpr size_t kCodesAhead = 1024;  // bytes between a panel's prefetch and its use

// Codes of one panel on their way to tiles.
template <bool kNibbles>
class CodeStream {
  public:
    static constexpr int kAtOnce = kNibbles ? 4 : 1 << 20;  // cells

    void start(const GemmQ& g, int panel) {
        p = panel;
        at_ = panel_codes(g.w, p);
    }

    // The next `cells` cells, of one group, as pairs of tiles.
    DI_INLINE const uint8_t* next(const GemmQ& g, int group, int cells) {
        const uint8_t* from = at_;
        at_ += cells * code_bytes(kNibbles);
        if (!kNibbles) return from;
        const ZeroBytes zeros(zeros_of(g.w, p, group));
        for (int c = 0; c < cells; ++c) {
            const uint8_t* cell = from + c * code_bytes(kNibbles);
            for (size_t i = 0; i < code_bytes(kNibbles); i += 64) __builtin_prefetch(cell + i + kCodesAhead);
            unpack_cell(cell, zeros, tiles_ + c * 2 * kTileBytes);
        }
        return tiles_;
    }

    int p;

  private:
    const uint8_t* at_;
    alignas(64) uint8_t tiles_[kNibbles ? kAtOnce * 2 * kTileBytes : 64];
};

template <bool kNibbles, int kSum, int kA>
DI_INLINE void multiply_codes(const uint8_t* cell) {
    if (!kNibbles) {
        for (size_t i = 0; i < code_bytes(false); i += 64) __builtin_prefetch(cell + i + kCodesAhead);
    }
    tile_load<2>(cell);
    tile_multiply_bytes<kNibbles, kSum, kA, 2>();
    tile_load<3>(cell + kTileBytes);
    tile_multiply_bytes<kNibbles, kSum + 1, kA, 3>();
}

// Up to 16 lines (rows and planes) in tile 0 against kPanels (1 or 2) panels: two streams from memory.
// Or, `split`, up to 16 rows with their planes in the tiles 0 and 1 against one panel.
template <int kPlanes, int kPanels, bool kSplit, bool kNibbles>
DI_NOINLINE void stream_codes(const GemmQ& g, int m, int rows, const int* p) {
    alignas(64) int32_t sums[4 * 256];
    alignas(64) float totals[kPanels][16 * kCell];
    CodeStream<kNibbles> codes[kPanels];
    for (int i = 0; i < kPanels; ++i) codes[i].start(g, p[i]);
    const Fits fits = fits_of(g.w, kPlanes);
    const size_t lines = static_cast<size_t>(rows) * kQuantCell, x_step = lines * kPlanes;
    const int8_t* x = g.x.row(m, 0, 0);
    const float* grid = g.grid.row<const float>(m);
    const auto column = [&](int c) { return grid + c / kCell * g.grid.step() + c % kCell; };
    for (int group = 0; group < g.w.groups; ++group) {
        const int left = g.w.cells - group * g.w.group_cells();
        int cells = left < g.w.group_cells() ? left : g.w.group_cells();
        tile_zero<4>(), tile_zero<5>(), tile_zero<6>(), tile_zero<7>();
        while (cells > 0) {
            const int n = cells < codes[0].kAtOnce ? cells : codes[0].kAtOnce;
            const uint8_t* w[2] = {codes[0].next(g, group, n), nullptr};
            if (kPanels == 2) w[1] = codes[kPanels - 1].next(g, group, n);
            for (int c = 0; c < n; ++c, x += x_step) {
                const size_t at = c * 2 * kTileBytes;
                tile_load<0>(x);
                if (kSplit) tile_load<1>(x + lines);
                multiply_codes<kNibbles, 4, 0>(w[0] + at);
                if (kPanels == 2) multiply_codes<kNibbles, 6, 0>(w[1] + at);
                if (kSplit) {
                    tile_multiply_bytes<kNibbles, 6, 1, 2>();
                    tile_multiply_bytes<kNibbles, 7, 1, 3>();
                }
            }
            cells -= n;
        }
        tile_store<4>(sums), tile_store<5>(sums + 256);
        if (kPanels == 2 || kSplit) tile_store<6>(sums + 512), tile_store<7>(sums + 768);
        for (int i = 0; i < kPanels; ++i) {
            PanelGrid panel;
            load_grid(g.w, p[i], group, panel);
            const GroupSums s{sums + i * 512, kSplit ? 512 : rows * 16,   panel.scales,
                              column(group),  column(g.w.groups + group), group > 0 ? totals[i] : nullptr};
            combine_rows<kPlanes, !kNibbles>(s, rows, fits, StoreTotals{totals[i]});
        }
    }
    for (int i = 0; i < kPanels; ++i) finish(epilogue_of(g), m, rows, p[i], totals[i]);
}

template <int kPlanes, bool kNibbles>
DI_INLINE void gemm_quant_stream(const GemmQ& g, int m, int rows, int p0, int p1) {
    if (kPlanes * rows > 16) {
        configure_tiles(rows, rows);
        for (int p = p0; p < p1; ++p) stream_codes<kPlanes, 1, true, kNibbles>(g, m, rows, &p);
        return;
    }
    configure_tiles(kPlanes * rows, kPlanes * rows);
    const int half = (p1 - p0) / 2, last = p1 - 1;
    for (int i = 0; i < half; ++i) {
        const int pair[2] = {p0 + i, p0 + half + i};
        stream_codes<kPlanes, 2, false, kNibbles>(g, m, rows, pair);
    }
    if ((p1 - p0) % 2) stream_codes<kPlanes, 1, false, kNibbles>(g, m, rows, &last);
}

template <int kPlanes, bool kNibbles>
DI_INLINE void gemm_quant_tiles(const GemmQ& g, int m0, int m1, int p0, int p1) {
    if (m1 - m0 <= 16 && g.x.rows <= 16) return gemm_quant_stream<kPlanes, kNibbles>(g, m0, m1 - m0, p0, p1);
    with_finish(finish_of(epilogue_of(g)),
                [&](auto tag) { gemm_quant_blocked<kPlanes, kNibbles, decltype(tag)::how>(g, m0, m1, p0, p1); });
}

void gemm_quant_amx(const GemmQ& g, int m0, int m1, int p0, int p1) {
    const bool nibbles = g.w.bits == DType::U4;
    if (m1 - m0 <= 4 / g.x.count) {
        gemm_quant<ByteDot<Zmm>>(g, m0, m1, p0, p1);
    } else if (g.x.count == 2) {
        nibbles ? gemm_quant_tiles<2, true>(g, m0, m1, p0, p1) : gemm_quant_tiles<2, false>(g, m0, m1, p0, p1);
    } else {
        nibbles ? gemm_quant_tiles<1, true>(g, m0, m1, p0, p1) : gemm_quant_tiles<1, false>(g, m0, m1, p0, p1);
    }
}

}  // namespace
}  // namespace di
