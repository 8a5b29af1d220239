// Attention's two products with fused multiply-add, over the cells of the cache: the same order as TDPBF16PS.
#pragma once
#include "attention.h"
#include "gemm.h"

namespace di {
namespace {

DI_INLINE void put_rounded(float* to, Vec v, CellF32) { v.store(to); }
DI_INLINE void put_rounded(float* to, Vec v, CellBf16) {
    alignas(64) bf16 rounded[16];
    v.store_bf16(rounded);
    Vec::load_bf16(rounded).store(to);
}

// acc[R] += x[R, 32] · half a cell; rows of x are 32 apart.
template <class Cell, int R> DI_INLINE void add_half_cell(Vec* acc, const float* x, const typename Cell::T* cell, int half) {
    Vec te[R], to[R];
    for (int m = 0; m < R; ++m) te[m] = to[m] = Vec::zero();
#pragma GCC unroll 16
    for (int r = 0; r < 16; ++r) {
        Vec even, odd;
        Cell::line(cell, half, r, even, odd);
        for (int m = 0; m < R; ++m) {
            te[m] = fma(Vec::set(x[m * kCell + 2 * r]), even, te[m]);
            to[m] = fma(Vec::set(x[m * kCell + 2 * r + 1]), odd, to[m]);
        }
    }
    for (int m = 0; m < R; ++m) acc[m] = acc[m] + (te[m] + to[m]);
}

template <class T> DI_INLINE void prefetch_cell(const T* cell) {
    for (int i = 0; i < kCellSize; i += 64 / static_cast<int>(sizeof(T))) __builtin_prefetch(cell + i, 0, 2);
}

template <class Cell> struct FmaTiles {
    using Cache = typename Cell::T;
    using Operand = float;
    static constexpr int kRows = Vec::kGemmRows;

    explicit FmaTiles(int rows) : rows_(rows) {}

    static DI_INLINE void put(float* to, Vec v) { put_rounded(to, v, Cell{}); }

    void scores(const float* q, const Cache* k, int cells, float* s, const Cache* ahead) const {
        for (int c = 0; ahead && c < cells; ++c) prefetch_cell(ahead + c * kCellSize);
        for (int r = 0; r < rows_; r += kRows) scores_of<kRows>(rows_ - r, q + r * kCell, k, cells, s + r * kScoreStride);
    }

    void values(const float* p, const Cache* const* v, int groups, int cells, float* o, const Cache* const* ahead) const {
        for (int g = 0; g < groups; ++g) {
            for (int c = 0; ahead[g] && c < cells; ++c) prefetch_cell(ahead[g] + c * kCellSize);
        }
        for (int c = 0; c < cells; ++c) {
            for (int r = 0; r < rows_; r += kRows)
                values_of<kRows>(rows_ - r, p + r * kCell, v, groups, c, o + r * cells * kCell + c * kCell, cells * kCell);
        }
    }

  private:
    // min(count, R) rows.
    template <int R> static DI_INLINE void scores_of(int count, const float* q, const Cache* k, int cells, float* s) {
        if (count >= R) return score_rows<R>(q, k, cells, s);
        if constexpr (R > 1) scores_of<R - 1>(count, q, k, cells, s);
    }
    template <int R>
    static DI_INLINE void values_of(int count, const float* p, const Cache* const* v, int groups, int c, float* o, int stride) {
        if (count >= R) return value_rows<R>(p, v, groups, c, o, stride);
        if constexpr (R > 1) values_of<R - 1>(count, p, v, groups, c, o, stride);
    }

    template <int R> static DI_NOINLINE void score_rows(const float* q, const Cache* k, int cells, float* s) {
        for (int half = 0; half < 2; ++half) {
            Vec acc[R];
            for (int m = 0; m < R; ++m) acc[m] = Vec::zero();
            for (int c = 0; c < cells; ++c) add_half_cell<Cell, R>(acc, q + c * kCellSize, k + c * kCellSize, half);
            for (int m = 0; m < R; ++m) acc[m].store(s + m * kScoreStride + 16 * half);
        }
    }

    // 32 columns of O: cell c of each group.
    template <int R>
    static DI_NOINLINE void value_rows(const float* p, const Cache* const* v, int groups, int c, float* o, int stride) {
        for (int half = 0; half < 2; ++half) {
            Vec acc[R];
            for (int m = 0; m < R; ++m) acc[m] = Vec::load(o + m * stride + 16 * half);
            for (int g = 0; g < groups; ++g) add_half_cell<Cell, R>(acc, p + g * kCellSize, v[g] + c * kCellSize, half);
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

}  // namespace
}  // namespace di
