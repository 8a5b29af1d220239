// Per-head norm and rotation of q and k in place.
#pragma once
#include "norm.h"
#include "rows.h"

namespace di {
namespace {

// A rotation as one formula for all columns: x' = fma(x, cos, partner · sin). The partner of column i is i ± h (halves)
// or i ± 1 (interleaved pairs); sin carries the minus sign of a pair's first column.
struct Rotation {
    int columns;  // 2h
    bool interleaved;
    alignas(64) float cos[kMaxHead + 16];
    alignas(64) float sin[kMaxHead + 16];

    Rotation(const Rope& a, int m) : columns(a.table.data ? a.rotary : 0), interleaved(a.interleaved) {
        if (columns == 0) return;
        const int h = columns / 2;
        const float* row = a.table.row<float>(m);
        const size_t step = a.table.step();
        const auto at = [&](int c) { return row[c / kCell * step + c % kCell]; };
        for (int i = 0; i < h; ++i) {
            const int first = interleaved ? 2 * i : i, second = interleaved ? first + 1 : i + h;
            cos[first] = cos[second] = at(i);
            sin[first] = -at(h + i);
            sin[second] = at(h + i);
        }
    }

    void apply(float* x) const {
        alignas(64) float partner[kMaxHead + 16];
        const int h = columns / 2;
        for (int i = 0; i < h; ++i) {
            const int first = interleaved ? 2 * i : i, second = interleaved ? first + 1 : i + h;
            partner[first] = x[second];
            partner[second] = x[first];
        }
        for (int i = 0; i < columns; i += 16) {
            const Vec y = fma(Vec::load(x + i), Vec::load(cos + i), Vec::load(partner + i) * Vec::load(sin + i));
            y.store_partial(x + i, columns - i < 16 ? columns - i : 16);
        }
    }
};

DI_INLINE void normalize_head(float* x, const float* weight, const Rope& a) {
    Vec lanes = Vec::zero();
    for (int i = 0; i < a.padded_head; i += 16) lanes = fma(Vec::load(x + i), Vec::load(x + i), lanes);
    const Vec inverse = inverse_root(Vec::set(lanes.reduce_add()), a.head_size, a.eps);
    for (int i = 0; i < a.padded_head; i += 16) (Vec::load(x + i) * inverse * Vec::load(weight + i)).store(x + i);
}

DI_INLINE void rope_heads(const Rope& a, const View& view, int heads, const float* norm, const Rotation& rotation,
                          int m) {
    if (!view.data || (!norm && rotation.columns == 0)) return;
    alignas(64) float x[kMaxHead + 16];
    float* p = view.row<float>(m);
    for (int head = 0; head < heads; ++head) {
        float* const first = p;
        for (int i = 0; i < a.padded_head; i += kCell, p += view.step()) {
            Vec::load(p).store(x + i);
            Vec::load(p + 16).store(x + i + 16);
        }
        if (norm) normalize_head(x, norm, a);
        rotation.apply(x);
        p = first;
        for (int i = 0; i < a.padded_head; i += kCell, p += view.step()) {
            Vec::load(x + i).store(p);
            Vec::load(x + i + 16).store(p + 16);
        }
    }
}

inline void rope(const Rope& a, int m0, int m1) {
    for (int m = m0; m < m1; ++m) {
        const Rotation rotation(a, m);
        rope_heads(a, a.q, a.q_heads, a.q_norm, rotation, m);
        rope_heads(a, a.k, a.kv_heads, a.k_norm, rotation, m);
    }
}

}  // namespace
}  // namespace di
