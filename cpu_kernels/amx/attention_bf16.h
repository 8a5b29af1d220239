// Attention's two products on AMX tiles: K and V blocks of the cache are tiles as they lie. Tiles are arranged as in
// configure_tiles.
//
// Up to 16 rows are mostly decode: memory sets the pace; what comes next is prefetched. More rows are prefill, where
// the task before has just read the same K and V: they come from L2, past L1, which is for scores and probabilities.
#pragma once
#include "../generic/attention.h"
#include "tile.h"

namespace di {
namespace {

class AmxTiles {
  public:
    using Cache = bf16;
    using Operand = bf16;

    // Up to 16 rows leave tiles 6 and 7 to a second panel of the same rows.
    explicit AmxTiles(int rows) : wide_(rows > kTileRows) {
        configure_tiles(wide_ ? kTileRows : rows, wide_ ? rows - kTileRows : rows);
    }

    static DI_INLINE void put(bf16* to, Vec v) { v.store_bf16(to); }

    void scores(const bf16* q, const bf16* k, int cells, float* s, const bf16* ahead) const {
        if (wide_) {
            scores_of<true>(q, k, cells, s, ahead);
        } else {
            scores_of<false>(q, k, cells, s, ahead);
        }
    }

    void values(const bf16* p, const bf16* const* v, int groups, int cells, float* o, const bf16* const* ahead) const {
        if (wide_) {
            for (int c = 0; c < cells; ++c) panel<true>(p, v, groups, c, cells, o, ahead);
            return;
        }
        int c = 0;
        for (; c + 2 <= cells; c += 2) panel_pair(p, v, groups, c, cells, o, ahead);
        if (c < cells) panel<false>(p, v, groups, c, cells, o, ahead);
    }

  private:
    static constexpr int kTileRows = 16;
    static constexpr int kTile = kCellSize / 2;  // elements
    static constexpr long kScoreBytes = kScoreStride * sizeof(float);

    static DI_INLINE void prefetch(const bf16* cell) {
        for (int i = 0; i < kCellSize; i += 32) __builtin_prefetch(cell + i, 0, 2);
    }

    template <bool kWide>
    static DI_INLINE void scores_of(const bf16* q, const bf16* k, int cells, float* s, const bf16* ahead) {
        tile_zero<4>();
        tile_zero<5>();
        if (kWide) {
            tile_zero<6>();
            tile_zero<7>();
        }
        for (int c = 0; c < cells; ++c, q += kCellSize, k += kCellSize) {
            if (!kWide && ahead) prefetch(ahead + c * kCellSize);
            multiply_cell<kWide>(q, k);
        }
        store_sums<kWide>(s, kScoreBytes);
    }

    // Sums of 32 columns += x[rows, 32] · cell
    template <bool kWide>
    static DI_INLINE void multiply_cell(const bf16* x, const bf16* cell) {
        tile_load<0>(x);
        load_once<kWide, 2>(cell);
        tile_multiply_bf16<4, 0, 2>();
        load_once<kWide, 3>(cell + kTile);
        tile_multiply_bf16<5, 0, 3>();
        if (kWide) {
            tile_load<1>(x + kTile);
            tile_multiply_bf16<6, 1, 2>();
            tile_multiply_bf16<7, 1, 3>();
        }
    }

    template <bool kWide, int kTile>
    static DI_INLINE void load_once(const bf16* p) {
        if (kWide) {
            tile_load_stream<kTile>(p);
        } else {
            tile_load<kTile>(p);
        }
    }

    // Columns [32c, 32c + 32) of O.
    template <bool kWide>
    static DI_INLINE void panel(const bf16* p, const bf16* const* v, int groups, int c, int cells, float* o,
                                const bf16* const* ahead) {
        const long row_bytes = static_cast<long>(cells) * kCell * static_cast<long>(sizeof(float));
        float* to = o + c * kCell;
        load_sums<kWide>(to, row_bytes, cells * kCell);
        for (int g = 0; g < groups; ++g) {
            if (!kWide && ahead[g]) prefetch(ahead[g] + c * kCellSize);
            multiply_cell<kWide>(p + g * kCellSize, v[g] + c * kCellSize);
        }
        store_sums<kWide>(to, row_bytes);
    }

    // Columns [32c, 32c + 64) of O for up to 16 rows.
    static DI_INLINE void panel_pair(const bf16* p, const bf16* const* v, int groups, int c, int cells, float* o,
                                     const bf16* const* ahead) {
        const long row_bytes = static_cast<long>(cells) * kCell * static_cast<long>(sizeof(float));
        float* to = o + c * kCell;
        load_row<4>(to, row_bytes);
        load_row<6>(to + kCell, row_bytes);
        for (int g = 0; g < groups; ++g) {
            if (ahead[g]) {
                prefetch(ahead[g] + c * kCellSize);
                prefetch(ahead[g] + (c + 1) * kCellSize);
            }
            const bf16* cell = v[g] + c * kCellSize;
            tile_load<0>(p + g * kCellSize);
            tile_load<2>(cell);
            tile_multiply_bf16<4, 0, 2>();
            tile_load<3>(cell + kTile);
            tile_multiply_bf16<5, 0, 3>();
            tile_load<2>(cell + 2 * kTile);
            tile_multiply_bf16<6, 0, 2>();
            tile_load<3>(cell + 3 * kTile);
            tile_multiply_bf16<7, 0, 3>();
        }
        store_row<4>(to, row_bytes);
        store_row<6>(to + kCell, row_bytes);
    }

    // Two tiles side by side: 32 columns of up to 16 rows.
    template <int kFirst>
    static DI_INLINE void load_row(const float* p, long row_bytes) {
        tile_load<kFirst>(p, row_bytes);
        tile_load<kFirst + 1>(p + 16, row_bytes);
    }
    template <int kFirst>
    static DI_INLINE void store_row(float* p, long row_bytes) {
        tile_store<kFirst>(p, row_bytes);
        tile_store<kFirst + 1>(p + 16, row_bytes);
    }
    template <bool kWide>
    static DI_INLINE void load_sums(const float* p, long row_bytes, int stride) {
        load_row<4>(p, row_bytes);
        if (kWide) load_row<6>(p + kTileRows * stride, row_bytes);
    }
    template <bool kWide>
    static DI_INLINE void store_sums(float* p, long row_bytes) {
        store_row<4>(p, row_bytes);
        if (kWide) store_row<6>(p + kTileRows * (row_bytes / static_cast<long>(sizeof(float))), row_bytes);
    }

    bool wide_;
};

inline void attention_bf16_amx(const Attention& a, const AttentionTask& t, float* scratch) {
    AttentionTile<AmxTiles>(a, t, scratch).run();
}

}  // namespace
}  // namespace di
