// Per-head norm and rotation of q and k in place.
//
// A few rows of a band go together, head by head: neighbours in memory, where the columns of a row lie pages apart.
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

    void set(const Rope& a, int m) {
        columns = a.table.data ? a.rotary : 0;
        interleaved = a.interleaved;
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
        if (interleaved) {
            for (int i = 0; i < columns; i += 2) partner[i] = x[i + 1], partner[i + 1] = x[i];
        } else {
            for (int i = 0; i < h; ++i) partner[i] = x[i + h];
            for (int i = 0; i < h; ++i) partner[i + h] = x[i];
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

DI_INLINE void rope_head(const Rope& a, float* p, size_t step, const float* norm, const Rotation& rotation) {
    alignas(64) float x[kMaxHead + 16];
    float* from = p;
    for (int i = 0; i < a.padded_head; i += kCell, from += step) {
        Vec::load(from).store(x + i);
        Vec::load(from + 16).store(x + i + 16);
    }
    if (norm) normalize_head(x, norm, a);
    rotation.apply(x);
    for (int i = 0; i < a.padded_head; i += kCell, p += step) {
        Vec::load(x + i).store(p);
        Vec::load(x + i + 16).store(p + 16);
    }
}

// Rows [m, m + n) of one band.
DI_INLINE void rope_heads(const Rope& a, const View& view, int heads, const float* norm, const Rotation* rotations,
                          int m, int n) {
    if (!view.data || (!norm && rotations->columns == 0)) return;
    float* p = view.row<float>(m);
    for (int head = 0; head < heads; ++head, p += a.padded_head / kCell * view.step()) {
        for (int i = 0; i < n; ++i) rope_head(a, p + i * kCell, view.step(), norm, rotations[i]);
    }
}

inline void rope(const Rope& a, int m0, int m1) {
    constexpr int kRows = 8;
    Rotation rotations[kRows];
    const int band = (a.q.data ? a.q : a.k).band();
    for (int m = m0; m < m1;) {
        const int room = m / band * band + band - m, left = m1 - m;
        int n = room < left ? room : left;
        if (n > kRows) n = kRows;
        for (int i = 0; i < n; ++i) rotations[i].set(a, m + i);
        rope_heads(a, a.q, a.q_heads, a.q_norm, rotations, m, n);
        rope_heads(a, a.k, a.kv_heads, a.k_norm, rotations, m, n);
        m += n;
    }
}

}  // namespace
}  // namespace di
