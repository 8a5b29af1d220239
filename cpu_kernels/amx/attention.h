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
    static DI_INLINE void put(bf16* to, Vec v, Vec next) {
        _mm512_storeu_si512(to, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(next.v, v.v)));
    }

    void scores(const bf16* q, const CellRun& k, int cells, float* s, const uint8_t* ahead) {
        if (wide_) {
            wide_scores(q, k, cells, s);
        } else {
            narrow_scores(q, k, cells, s, ahead);
        }
    }
    void finish_scores() {
        if (wide_) leave();
    }

    void values(const bf16* p, const CellRun* v, int groups, int cells, float* o, int width,
                const uint8_t* const* ahead) {
        if (wide_) {
            for (int c = 0; c < cells; ++c) wide_panel(p, v, groups, c, o, width);
            return leave();
        }
        int c = 0;
        for (; c + 2 <= cells; c += 2) panel_pair(p, v, groups, c, o, width, ahead);
        if (c < cells) narrow_panel(p, v, groups, c, o, width, ahead);
    }

  private:
    static constexpr int kTileRows = 16;
    static constexpr int kTile = kCellSize / 2;                        // elements
    static constexpr long kScoreBytes = kScoreStride * sizeof(float);  // of a row of scores or probabilities

    // 32 columns of 17 to 32 rows on their way out of the tiles 4 to 7. Stores of tiles stop the multiplications behind
    // them: so they are done between the instructions of the next sums' first cell.
    struct Sums {
        float* at = nullptr;  // null: there are none
        long row_bytes = 0;

        template <int kTile>
        DI_INLINE float* tile() const {
            constexpr int kPart = kTile - 4;
            return at + kPart / 2 * kTileRows * (row_bytes / static_cast<long>(sizeof(float))) + kPart % 2 * 16;
        }
    };

    template <int kTile>
    DI_INLINE void exchange(const Sums& from) const {
        if (leaving_.at) tile_store<kTile>(leaving_.template tile<kTile>(), leaving_.row_bytes);
        if (from.at) {
            tile_load<kTile>(from.template tile<kTile>(), from.row_bytes);
        } else {
            tile_zero<kTile>();
        }
    }

    // Rows of 32 columns, kRowBytes apart, in tile 0 (and tile 1).
    template <int kTile, long kRowBytes>
    static DI_INLINE void load_x(const bf16* x) {
        tile_load<kTile>(x + kTile * kTileRows * (kRowBytes / static_cast<long>(sizeof(bf16))), kRowBytes);
    }

    // The first cell of new sums: x[rows, 32] · cell, onto what `from` holds.
    template <long kRowBytes>
    DI_INLINE void first_cell(const bf16* x, const bf16* cell, const Sums& from) const {
        exchange<4>(from);
        load_x<0, kRowBytes>(x);
        load_once<2>(cell);
        tile_multiply_bf16<4, 0, 2>();
        exchange<5>(from);
        load_once<3>(cell + kTile);
        tile_multiply_bf16<5, 0, 3>();
        exchange<6>(from);
        load_x<1, kRowBytes>(x);
        tile_multiply_bf16<6, 1, 2>();
        exchange<7>(from);
        tile_multiply_bf16<7, 1, 3>();
    }
    template <long kRowBytes>
    static DI_INLINE void next_cell(const bf16* x, const bf16* cell) {
        load_x<0, kRowBytes>(x);
        load_once<2>(cell);
        tile_multiply_bf16<4, 0, 2>();
        load_once<3>(cell + kTile);
        tile_multiply_bf16<5, 0, 3>();
        load_x<1, kRowBytes>(x);
        tile_multiply_bf16<6, 1, 2>();
        tile_multiply_bf16<7, 1, 3>();
    }
    // What is in the tiles leaves now.
    DI_INLINE void leave() {
        tile_store<4>(leaving_.template tile<4>(), leaving_.row_bytes);
        tile_store<5>(leaving_.template tile<5>(), leaving_.row_bytes);
        tile_store<6>(leaving_.template tile<6>(), leaving_.row_bytes);
        tile_store<7>(leaving_.template tile<7>(), leaving_.row_bytes);
        leaving_ = {};
    }

    template <int kTile>
    static DI_INLINE void load_once(const bf16* p) {
        if (kCodes) {
            tile_load<kTile>(p);
        } else {
            tile_load_stream<kTile>(p);
        }
    }

    DI_INLINE void wide_scores(const bf16* q, const CellRun& k, int cells, float* s) {
        const bf16* next = source_.k(k, 0, nullptr);
        for (int c = 0; c < cells; ++c, q += kCellSize) {
            const bf16* cell = next;
            if (c + 1 < cells) next = source_.k(k, c + 1, nullptr);
            c == 0 ? first_cell<kTileStride>(q, cell, {}) : next_cell<kTileStride>(q, cell);
        }
        leaving_ = {s, kScoreBytes};
    }

    // Columns [32c, 32c + 32) of O.
    DI_INLINE void wide_panel(const bf16* p, const CellRun* v, int groups, int c, float* o, int width) {
        const Sums sums{o + c * kCell, width * static_cast<long>(sizeof(float))};
        const bf16* next = source_.v(v[0], c, nullptr);
        for (int g = 0; g < groups; ++g) {
            const bf16* cell = next;
            if (g + 1 < groups) next = source_.v(v[g + 1], c, nullptr);
            g == 0 ? first_cell<kScoreBytes>(p, cell, sums) : next_cell<kScoreBytes>(p + g * kCell, cell);
        }
        leaving_ = sums;
    }

    DI_INLINE void narrow_scores(const bf16* q, const CellRun& k, int cells, float* s, const uint8_t* ahead) {
        tile_zero<4>();
        tile_zero<5>();
        const bf16* next = source_.k(k, 0, ahead);
        for (int c = 0; c < cells; ++c, q += kCellSize) {
            const bf16* cell = next;
            if (c + 1 < cells) next = source_.k(k, c + 1, ahead);
            narrow_cell<kTileStride>(q, cell);
        }
        store_row<4>(s, kScoreBytes);
    }

    // Sums of 32 columns += x[rows, 32] · cell
    template <long kRowBytes>
    static DI_INLINE void narrow_cell(const bf16* x, const bf16* cell) {
        load_x<0, kRowBytes>(x);
        tile_load<2>(cell);
        tile_multiply_bf16<4, 0, 2>();
        tile_load<3>(cell + kTile);
        tile_multiply_bf16<5, 0, 3>();
    }

    // Columns [32c, 32c + 32) of O for up to 16 rows.
    DI_INLINE void narrow_panel(const bf16* p, const CellRun* v, int groups, int c, float* o, int width,
                                const uint8_t* const* ahead) {
        const long row_bytes = width * static_cast<long>(sizeof(float));
        float* to = o + c * kCell;
        load_row<4>(to, row_bytes);
        const bf16* next = source_.v(v[0], c, ahead[0]);
        for (int g = 0; g < groups; ++g) {
            const bf16* cell = next;
            if (g + 1 < groups) next = source_.v(v[g + 1], c, ahead[g + 1]);
            narrow_cell<kScoreBytes>(p + g * kCell, cell);
        }
        store_row<4>(to, row_bytes);
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
            load_x<0, kScoreBytes>(p + g * kCell);
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
    bool wide_;
    Cells source_;
    Sums leaving_;
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
