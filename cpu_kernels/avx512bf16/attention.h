// Attention's two products over a cache in bf16, and over codes that become bf16 integers, with VDPBF16PS.
#pragma once
#include "../generic/attention_codes.h"
#include "pairs.h"

namespace di {
namespace {

struct PairTiles {
    using Operand = bf16;  // in pairs
    static constexpr size_t kCellBytes = kCellSize * sizeof(bf16);
    static constexpr bool kCodes = false;

    PairTiles(int rows, float*) : rows_(rows) {}

    static DI_INLINE void put(bf16* to, Vec v) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), paired(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v.v))));
    }
    static DI_INLINE void put(bf16* to, Vec v, Vec next) {
        _mm512_storeu_si512(to, paired(reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(next.v, v.v))));
    }

    void finish_scores() const {}
    void scores(const bf16* q, const CellRun& k, int cells, float* s, const uint8_t* ahead) const {
        const bf16* cache = k.as<bf16>();
        const auto* next = reinterpret_cast<const bf16*>(ahead);
        for (int r = 0; r < rows_; r += kPairRows, next = nullptr) {
            with_rows(rows_ - r, [&](auto count) {
                score_rows<decltype(count)::value>(q + r * kCell, cache, cells, s + r * kScoreStride, next);
            });
        }
    }

    void values(const bf16* p, const CellRun* v, int groups, int cells, float* o, int width,
                const uint8_t* const* ahead) const {
        for (int c = 0; c < cells; ++c) {
            for (int r = 0; r < rows_; r += kPairRows) {
                with_rows(rows_ - r, [&](auto count) {
                    value_rows<decltype(count)::value>(p + r * kStride, v, groups, c, o + r * width + c * kCell, width,
                                                       r == 0 ? ahead : nullptr);
                });
            }
        }
    }

  private:
    static constexpr int kStride = kScoreStride * sizeof(float) / sizeof(bf16);  // of rows of probabilities

    // An eighth of the cell at `ahead`, or of nothing.
    static DI_INLINE void fetch(const bf16* ahead, int step) {
        constexpr int kPart = kCellSize / kCellSteps;
        for (int i = 0; ahead && i < kPart; i += 32) __builtin_prefetch(ahead + step * kPart + i, 0, 2);
    }

    template <int kRows>
    static DI_NOINLINE void score_rows(const bf16* q, const bf16* k, int cells, float* s, const bf16* ahead) {
        Vec acc[kRows][2];
        for (int i = 0; i < 2 * kRows; ++i) acc[i / 2][i % 2] = Vec::zero();
        for (int c = 0; c < cells; ++c) {
            const bf16* next = ahead ? ahead + c * kCellSize : nullptr;
            add_cell<kRows, kCell>(q + c * kCellSize, k + c * kCellSize, acc, [&](int step) { fetch(next, step); });
        }
        for (int i = 0; i < 2 * kRows; ++i) acc[i / 2][i % 2].store(s + i / 2 * kScoreStride + i % 2 * 16);
    }

    // 32 columns of O: cell c of each group.
    template <int kRows>
    static DI_NOINLINE void value_rows(const bf16* p, const CellRun* v, int groups, int c, float* o, int width,
                                       const uint8_t* const* ahead) {
        Vec acc[kRows][2];
        for (int i = 0; i < 2 * kRows; ++i) acc[i / 2][i % 2] = Vec::load(o + i / 2 * width + i % 2 * 16);
        for (int g = 0; g < groups; ++g) {
            const bf16* next = ahead && ahead[g] ? reinterpret_cast<const bf16*>(ahead[g]) + c * kCellSize : nullptr;
            add_cell<kRows, kStride>(p + g * kCell, v[g].as<bf16>() + c * kCellSize, acc,
                                     [&](int step) { fetch(next, step); });
        }
        for (int i = 0; i < 2 * kRows; ++i) acc[i / 2][i % 2].store(o + i / 2 * width + i % 2 * 16);
    }

    int rows_;
};

inline void attention_bf16_pairs(const Attention& a, const AttentionTask& t, float* scratch) {
    AttentionTile<PairTiles>(a, t, scratch).run();
}

inline void attention_u8_pairs(const Attention& a, const AttentionTask& t, float* scratch) {
    AttentionTile<CodeTiles<PairTiles, 8>>(a, t, scratch).run();
}

inline void attention_u4_pairs(const Attention& a, const AttentionTask& t, float* scratch) {
    AttentionTile<CodeTiles<PairTiles, 4>>(a, t, scratch).run();
}

}  // namespace
}  // namespace di
