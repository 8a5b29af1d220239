// Attention's two products with fused multiply-add, over the cells of the cache: the same order as TDPBF16PS.
#pragma once
#include "attention_codes.h"
#include "gemm.h"

namespace di {
namespace {

DI_INLINE void put_rounded(float* to, Vec v, CellF32) { v.store(to); }
DI_INLINE void put_rounded(float* to, Vec v, CellBf16) {
    alignas(64) bf16 rounded[16];
    v.store_bf16(rounded);
    Vec::load_bf16(rounded).store(to);
}

// acc[R] += x[R, 32] · half a cell; rows of x are kStride apart. Prefetches the same half of the cell `ahead`, line by
// line beside the arithmetic.
template <class Cell, int R, int kStride>
DI_INLINE void add_half_cell(Vec* acc, const float* x, const typename Cell::T* cell, int half,
                             const typename Cell::T* ahead) {
    Vec te[R], to[R];
    for (int m = 0; m < R; ++m) te[m] = to[m] = Vec::zero();
    ahead += half * (kCellSize / 2);
#pragma GCC unroll 16
    for (int r = 0; r < 16; ++r) {
        Vec even, odd;
        Cell::line(cell, half, r, even, odd);
        __builtin_prefetch(ahead + r * kCell, 0, 2);
        if (sizeof *ahead == 4) __builtin_prefetch(ahead + r * kCell + 16, 0, 2);
        for (int m = 0; m < R; ++m) {
            te[m] = fma(Vec::set(x[m * kStride + 2 * r]), even, te[m]);
            to[m] = fma(Vec::set(x[m * kStride + 2 * r + 1]), odd, to[m]);
        }
    }
    for (int m = 0; m < R; ++m) acc[m] = acc[m] + (te[m] + to[m]);
}

template <class Cell>
struct FmaTiles {
    using Cache = typename Cell::T;
    using Operand = float;
    static constexpr size_t kCellBytes = kCellSize * sizeof(Cache);
    static constexpr bool kCodes = false;
    static constexpr int kRows = Vec::kGemmRows;

    FmaTiles(int rows, float*) : rows_(rows) {}

    static DI_INLINE void put(float* to, Vec v) { put_rounded(to, v, Cell{}); }
    static DI_INLINE void put(float* to, Vec v, Vec next) { put(to, v), put(to + 16, next); }

    void finish_scores() const {}
    void scores(const float* q, const CellRun& k, int cells, float* s, const uint8_t* ahead) const {
        const Cache* cache = k.as<Cache>();
        for (int r = 0; r < rows_; r += kRows) {
            const Cache* next = ahead && r == 0 ? reinterpret_cast<const Cache*>(ahead) : cache;
            scores_of<kRows>(rows_ - r, q + r * kCell, cache, cells, s + r * kScoreStride, next);
        }
    }

    void values(const float* p, const CellRun* v, int groups, int cells, float* o, int width,
                const uint8_t* const* ahead) const {
        const Cache *cache[kStepGroups], *next[kStepGroups];
        for (int g = 0; g < groups; ++g) {
            cache[g] = v[g].as<Cache>();
            next[g] = ahead[g] ? reinterpret_cast<const Cache*>(ahead[g]) : cache[g];
        }
        for (int c = 0; c < cells; ++c) {
            for (int r = 0; r < rows_; r += kRows) {
                float* to = o + r * width + c * kCell;
                values_of<kRows>(rows_ - r, p + r * kScoreStride, cache, groups, c, to, width, r == 0 ? next : cache);
            }
        }
    }

  private:
    // min(count, R) rows.
    template <int R>
    static DI_INLINE void scores_of(int count, const float* q, const Cache* k, int cells, float* s,
                                    const Cache* ahead) {
        if (count >= R) return score_rows<R>(q, k, cells, s, ahead);
        if constexpr (R > 1) scores_of<R - 1>(count, q, k, cells, s, ahead);
    }
    template <int R>
    static DI_INLINE void values_of(int count, const float* p, const Cache* const* v, int groups, int c, float* o,
                                    int stride, const Cache* const* ahead) {
        if (count >= R) return value_rows<R>(p, v, groups, c, o, stride, ahead);
        if constexpr (R > 1) values_of<R - 1>(count, p, v, groups, c, o, stride, ahead);
    }

    template <int R>
    static DI_NOINLINE void score_rows(const float* q, const Cache* k, int cells, float* s, const Cache* ahead) {
        for (int half = 0; half < 2; ++half) {
            Vec acc[R];
            for (int m = 0; m < R; ++m) acc[m] = Vec::zero();
            for (int c = 0; c < cells; ++c)
                add_half_cell<Cell, R, kCell>(acc, q + c * kCellSize, k + c * kCellSize, half, ahead + c * kCellSize);
            for (int m = 0; m < R; ++m) acc[m].store(s + m * kScoreStride + 16 * half);
        }
    }

    // 32 columns of O: cell c of each group.
    template <int R>
    static DI_NOINLINE void value_rows(const float* p, const Cache* const* v, int groups, int c, float* o, int stride,
                                       const Cache* const* ahead) {
        for (int half = 0; half < 2; ++half) {
            Vec acc[R];
            for (int m = 0; m < R; ++m) acc[m] = Vec::load(o + m * stride + 16 * half);
            for (int g = 0; g < groups; ++g) {
                add_half_cell<Cell, R, kScoreStride>(acc, p + g * kCell, v[g] + c * kCellSize, half,
                                                     ahead[g] + c * kCellSize);
            }
            for (int m = 0; m < R; ++m) acc[m].store(o + m * stride + 16 * half);
        }
    }

    int rows_;
};

inline void attention_f32(const Attention& a, const AttentionTask& t, float* scratch) {
    AttentionTile<FmaTiles<CellF32>>(a, t, scratch).run();
}

inline void attention_bf16(const Attention& a, const AttentionTask& t, float* scratch) {
    AttentionTile<FmaTiles<CellBf16>>(a, t, scratch).run();
}

inline void attention_u8(const Attention& a, const AttentionTask& t, float* scratch) {
    AttentionTile<CodeTiles<FmaTiles<CellBf16>, 8>>(a, t, scratch).run();
}

inline void attention_u4(const Attention& a, const AttentionTask& t, float* scratch) {
    AttentionTile<CodeTiles<FmaTiles<CellBf16>, 4>>(a, t, scratch).run();
}

}  // namespace
}  // namespace di
