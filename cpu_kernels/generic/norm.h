// RMS norm and layer norm: x[M,H] fp32 → y[M,H] fp32 or bf16. Sums in the 16 lanes of docs/arithmetic.md.
//
// Rows of one band go together, column chunk by column chunk: memory is read in order and the rows' chains of additions
// overlap.
#pragma once
#include "rows.h"

namespace di {
namespace {

template <class F>
DI_INLINE PerRow map_per_row(const PerRow& a, F f) {
    PerRow r;
    f(Vec::load(a.v)).store(r.v);
    f(Vec::load(a.v + 16)).store(r.v + 16);
    return r;
}

// Per row: the sum over its columns of add(lanes, x, row, column of x's first lane).
template <class F>
DI_INLINE PerRow sum_rows(const View& x, int m, int n, F add) {
    alignas(64) float lanes[kCell][16];
    for (int r = 0; r < n; ++r) Vec::zero().store(lanes[r]);
    const float* p = x.row<float>(m);
    for (int c = 0; c < x.cols; c += kCell, p += x.step()) {
        for (int r = 0; r < n; ++r) {
            Vec s = Vec::load(lanes[r]);
            s = add(s, Vec::load(p + r * kCell), r, c);
            s = add(s, Vec::load(p + r * kCell + 16), r, c + 16);
            s.store(lanes[r]);
        }
    }
    PerRow sums{};
    for (int r = 0; r < n; ++r) sums.v[r] = Vec::load(lanes[r]).reduce_add();
    return sums;
}

// y = f(x, row, column of x's first lane)
template <class F>
DI_INLINE void write_rows(const View& y, const View& x, int m, int n, F f) {
    by_type(y.dtype, [&](auto ty) {
        auto* py = y.row<TypeOf<decltype(ty)>>(m);
        const float* px = x.row<float>(m);
        for (int c = 0; c < y.cols; c += kCell, py += y.step(), px += x.step()) {
            for (int r = 0; r < n; ++r) {
                store16(py + r * kCell, f(Vec::load(px + r * kCell), r, c));
                store16(py + r * kCell + 16, f(Vec::load(px + r * kCell + 16), r, c + 16));
            }
        }
    });
}

DI_INLINE Vec inverse_root(Vec sum, int n, float eps) {
    return Vec::set(1.0f) / sqrt(sum / Vec::set(static_cast<float>(n)) + Vec::set(eps));
}

inline void rms_norm(const Norm& a, int m0, int m1) {
    for_bands(a.x, m0, m1, [&](int m, int n) {
        const PerRow squares = sum_rows(a.x, m, n, [](Vec s, Vec x, int, int) { return fma(x, x, s); });
        const PerRow inverse = map_per_row(squares, [&](Vec s) { return inverse_root(s, a.cols, a.eps); });
        write_rows(a.y, a.x, m, n,
                   [&](Vec x, int r, int c) { return x * Vec::set(inverse.v[r]) * Vec::load(a.weight + c); });
    });
}

inline void layer_norm(const Norm& a, int m0, int m1) {
    for_bands(a.x, m0, m1, [&](int m, int n) {
        const PerRow sums = sum_rows(a.x, m, n, [](Vec s, Vec x, int, int) { return s + x; });
        const PerRow mean = map_per_row(sums, [&](Vec s) { return s / Vec::set(static_cast<float>(a.cols)); });
        const PerRow squares = sum_rows(a.x, m, n, [&](Vec s, Vec x, int r, int c) {
            const Vec d = select(Vec::first_n(a.cols - c), x - Vec::set(mean.v[r]), Vec::zero());
            return fma(d, d, s);
        });
        const PerRow inverse = map_per_row(squares, [&](Vec s) { return inverse_root(s, a.cols, a.eps); });
        write_rows(a.y, a.x, m, n, [&](Vec x, int r, int c) {
            const Vec bias = a.bias ? Vec::load(a.bias + c) : Vec::zero();
            return fma((x - Vec::set(mean.v[r])) * Vec::set(inverse.v[r]), Vec::load(a.weight + c), bias);
        });
    });
}

}  // namespace
}  // namespace di
