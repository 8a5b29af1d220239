// Attention's two products on AMX tiles. Tiles are arranged as in configure_tiles. Cells of a bf16 cache are tiles as
// they lie; cells of codes are expanded into L1 one ahead of the one that is multiplied, so that vector and matrix
// units work side by side.
//
// Up to 16 rows are mostly decode: memory sets the pace; what comes next is prefetched. More rows are prefill, where
// the task before has just read the same K and V: they come from L2, past L1, which is for scores and probabilities.
#pragma once
#include "../generic/attention.h"
#include "../generic/kv_codes.h"
#include "tile.h"

namespace di {
namespace {

// Where tiles come from: cell c of a run of K or V. `ahead` is a run that is to be prefetched, or null.
struct StoredCells {
    static constexpr size_t kCellBytes = kCellSize * sizeof(bf16);
    static constexpr bool kCodes = false;

    explicit StoredCells(float*) {}

    DI_INLINE const bf16* k(const CellRun& run, int c, const uint8_t* ahead) { return cell(run, c, ahead); }
    DI_INLINE const bf16* v(const CellRun& run, int c, const uint8_t* ahead) { return cell(run, c, ahead); }

  private:
    static DI_INLINE const bf16* cell(const CellRun& run, int c, const uint8_t* ahead) {
        if (ahead) {
            for (size_t i = 0; i < kCellBytes; i += 64) __builtin_prefetch(ahead + c * kCellBytes + i, 0, 2);
        }
        return run.as<bf16>() + c * kCellSize;
    }
};

template <int kBits>
class ExpandedCells {
    using Codes = KvCodes<kBits>;

  public:
    static constexpr size_t kCellBytes = Codes::kCellBytes;
    static constexpr bool kCodes = true;

    explicit ExpandedCells(float* room) : ring_(reinterpret_cast<bf16*>(room)) {}

    DI_INLINE const bf16* k(const CellRun& run, int c, const uint8_t* ahead) {
        bf16* to = next();
        Codes::expand_k(to, run.data + c * kCellBytes, run.zeros, ahead ? ahead + c * kCellBytes : nullptr);
        return to;
    }
    DI_INLINE const bf16* v(const CellRun& run, int c, const uint8_t* ahead) {
        bf16* to = next();
        Codes::expand_v(to, run.data + c * kCellBytes, run.zeros, ahead ? ahead + c * kCellBytes : nullptr);
        return to;
    }

  private:
    static constexpr unsigned kSlots = 4;  // two cells that are multiplied, two that are expanded meanwhile

    DI_INLINE bf16* next() { return ring_ + turn_++ % kSlots * kCellSize; }

    bf16* ring_;
    unsigned turn_ = 0;
};

template <class Cells>
class AmxTiles {
  public:
    using Operand = bf16;
    static constexpr size_t kCellBytes = Cells::kCellBytes;
    static constexpr bool kCodes = Cells::kCodes;

    // Up to 16 rows leave tiles 6 and 7 to a second panel of the same rows.
    AmxTiles(int rows, float* room) : wide_(rows > kTileRows), source_(room) {
        configure_tiles(wide_ ? kTileRows : rows, wide_ ? rows - kTileRows : rows);
    }

    static DI_INLINE void put(bf16* to, Vec v) { v.store_bf16(to); }

    void scores(const bf16* q, const CellRun& k, int cells, float* s, const uint8_t* ahead) {
        if (wide_) {
            scores_of<true>(q, k, cells, s, nullptr);
        } else {
            scores_of<false>(q, k, cells, s, ahead);
        }
    }

    void values(const bf16* p, const CellRun* v, int groups, int cells, float* o, int width,
                const uint8_t* const* ahead) {
        if (wide_) {
            for (int c = 0; c < cells; ++c) panel<true>(p, v, groups, c, o, width, ahead);
            return;
        }
        int c = 0;
        for (; c + 2 <= cells; c += 2) panel_pair(p, v, groups, c, o, width, ahead);
        if (c < cells) panel<false>(p, v, groups, c, o, width, ahead);
    }

  private:
    static constexpr int kTileRows = 16;
    static constexpr int kTile = kCellSize / 2;  // elements
    static constexpr long kScoreBytes = kScoreStride * sizeof(float);

    template <bool kWide>
    DI_INLINE void scores_of(const bf16* q, const CellRun& k, int cells, float* s, const uint8_t* ahead) {
        tile_zero<4>();
        tile_zero<5>();
        if (kWide) {
            tile_zero<6>();
            tile_zero<7>();
        }
        const bf16* next = source_.k(k, 0, ahead);
        for (int c = 0; c < cells; ++c, q += kCellSize) {
            const bf16* cell = next;
            if (c + 1 < cells) next = source_.k(k, c + 1, ahead);
            multiply_cell<kWide>(q, cell);
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
        if (kWide && !kCodes) {
            tile_load_stream<kTile>(p);
        } else {
            tile_load<kTile>(p);
        }
    }

    // Columns [32c, 32c + 32) of O.
    template <bool kWide>
    DI_INLINE void panel(const bf16* p, const CellRun* v, int groups, int c, float* o, int width,
                         const uint8_t* const* ahead) {
        const long row_bytes = static_cast<long>(width) * static_cast<long>(sizeof(float));
        float* to = o + c * kCell;
        load_sums<kWide>(to, row_bytes, width);
        const auto cell_of = [&](int g) { return source_.v(v[g], c, kWide ? nullptr : ahead[g]); };
        const bf16* next = cell_of(0);
        for (int g = 0; g < groups; ++g) {
            const bf16* cell = next;
            if (g + 1 < groups) next = cell_of(g + 1);
            multiply_cell<kWide>(p + g * kCellSize, cell);
        }
        store_sums<kWide>(to, row_bytes);
    }

    // Columns [32c, 32c + 64) of O for up to 16 rows.
    DI_INLINE void panel_pair(const bf16* p, const CellRun* v, int groups, int c, float* o, int width,
                              const uint8_t* const* ahead) {
        const long row_bytes = static_cast<long>(width) * static_cast<long>(sizeof(float));
        float* to = o + c * kCell;
        load_row<4>(to, row_bytes);
        load_row<6>(to + kCell, row_bytes);
        const bf16 *next = source_.v(v[0], c, ahead[0]), *next2 = source_.v(v[0], c + 1, ahead[0]);
        for (int g = 0; g < groups; ++g) {
            const bf16 *cell = next, *cell2 = next2;
            if (g + 1 < groups) {
                next = source_.v(v[g + 1], c, ahead[g + 1]);
                next2 = source_.v(v[g + 1], c + 1, ahead[g + 1]);
            }
            tile_load<0>(p + g * kCellSize);
            tile_load<2>(cell);
            tile_multiply_bf16<4, 0, 2>();
            tile_load<3>(cell + kTile);
            tile_multiply_bf16<5, 0, 3>();
            tile_load<2>(cell2);
            tile_multiply_bf16<6, 0, 2>();
            tile_load<3>(cell2 + kTile);
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
    Cells source_;
};

inline void attention_bf16_amx(const Attention& a, const AttentionTask& t, float* scratch) {
    AttentionTile<AmxTiles<StoredCells>>(a, t, scratch).run();
}

inline void attention_u8_amx(const Attention& a, const AttentionTask& t, float* scratch) {
    AttentionTile<AmxTiles<ExpandedCells<8>>>(a, t, scratch).run();
}

inline void attention_u4_amx(const Attention& a, const AttentionTask& t, float* scratch) {
    AttentionTile<AmxTiles<ExpandedCells<4>>>(a, t, scratch).run();
}

}  // namespace
}  // namespace di
