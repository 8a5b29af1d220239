// One row of an embedding table, row-major or in the panels of a tied output layer: scale · table[V,H] → y[m], fp32.
#pragma once
#include "rows.h"

namespace di {
namespace {

DI_INLINE Vec load16_as(DType t, const void* table, size_t i) {
    switch (t) {
        case DType::F32:
            return Vec::load(static_cast<const float*>(table) + i);
        case DType::F16:
            return Vec::load_f16(static_cast<const f16*>(table) + i);
        default:
            return Vec::load_bf16(static_cast<const bf16*>(table) + i);
    }
}

// Columns [32 * cell, 32 * cell + 32) of row n of a panel run, contiguous.
template <class T>
DI_INLINE void gather_cell(T* to, const T* panels, int cells, int n, int cell) {
    for (int k = 0; k < kCell; ++k) {
        const int column = cell * kCell + k;
        to[k] = panels[sizeof(T) == 4 ? panel_index_f32(cells, n, column) : panel_index_16(cells, n, column)];
    }
}

inline void embed(const Embed& a, int token, int m) {
    const Vec factor = Vec::set(a.scale);
    float* y = a.y.row<float>(m);
    for (int c = 0; c < a.y.cols / kCell; ++c, y += a.y.step()) {
        alignas(64) float gathered[kCell];
        const void* from = a.table;
        size_t at = (static_cast<size_t>(token) * a.k_cells + c) * kCell;
        if (a.panels) {
            if (a.dtype == DType::F32) {
                gather_cell(gathered, static_cast<const float*>(a.table), a.k_cells, token, c);
            } else {
                auto* halves = reinterpret_cast<uint16_t*>(gathered);
                gather_cell(halves, static_cast<const uint16_t*>(a.table), a.k_cells, token, c);
            }
            from = gathered;
            at = 0;
        }
        (load16_as(a.dtype, from, at) * factor).store(y);
        (load16_as(a.dtype, from, at + 16) * factor).store(y + 16);
    }
}

}  // namespace
}  // namespace di
