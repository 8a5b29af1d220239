// x[M,K] · w[N,K]ᵀ in bf16 on AMX tiles. Up to 32 rows stream the panels from memory; more go through cache blocks.
#pragma once
#include "gemm_bf16_blocked.h"

namespace di {
namespace {

constexpr size_t kStreamAhead = 1024;  // bytes between a panel's prefetch and its use

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

void gemm_bf16_amx(const Gemm& g, int m0, int m1, int p0, int p1) {
    if (m1 - m0 <= kCell) return gemm_stream(g, m0, m1 - m0, p0, p1);
    with_finish(finish_of(g), [&](auto tag) { gemm_blocked<decltype(tag)::how>(g, m0, m1, p0, p1); });
}

// Numbers as products have them, ± 0.5 to 2 with all their bits: with zeros the clock rises, by up to a fifth, to where
// no product ever gets.
double matrix_peak_amx(int64_t rounds) {
    alignas(64) bf16 x[4][kTileBytes / sizeof(bf16)];
    uint32_t bits = 1;
    for (auto& tile : x) {
        for (bf16& number : tile) {
            bits = bits * 1664525u + 1013904223u;
            number = static_cast<bf16>(0x3f00u | (bits >> 16 & 0x80ffu));
        }
    }
    configure_tiles(16, 16);
    tile_load<0>(x[0]), tile_load<1>(x[1]), tile_load<2>(x[2]), tile_load<3>(x[3]);
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
