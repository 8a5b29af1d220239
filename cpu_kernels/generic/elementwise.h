// Elementwise maps over rows [m0, m1): y[M,N] = op(a[M,N], b[M,N]), each fp32 or bf16. All ops keep padding zero.
#pragma once
#include "math.h"
#include "rows.h"

namespace di {
namespace {

// y = f(a), f: Vec -> Vec
template <class F>
DI_INLINE void map_rows(const View& y, const View& a, int m0, int m1, F f) {
    by_type(y.dtype, [&](auto ty) {
        by_type(a.dtype, [&](auto ta) {
            for_bands(y, m0, m1, [&](int m, int n) {
                auto* py = y.row<TypeOf<decltype(ty)>>(m);
                const auto* pa = a.row<TypeOf<decltype(ta)>>(m);
                for (int c = 0; c < y.cols; c += kCell, py += y.step(), pa += a.step()) {
                    for (int i = 0; i < n * kCell; i += 16) store16(py + i, f(load16(pa + i)));
                }
            });
        });
    });
}

// y = f(a, b)
template <class F>
DI_INLINE void map_rows(const View& y, const View& a, const View& b, int m0, int m1, F f) {
    by_type(y.dtype, [&](auto ty) {
        by_type(a.dtype, [&](auto ta) {
            by_type(b.dtype, [&](auto tb) {
                for_bands(y, m0, m1, [&](int m, int n) {
                    auto* py = y.row<TypeOf<decltype(ty)>>(m);
                    const auto* pa = a.row<TypeOf<decltype(ta)>>(m);
                    const auto* pb = b.row<TypeOf<decltype(tb)>>(m);
                    for (int c = 0; c < y.cols; c += kCell, py += y.step(), pa += a.step(), pb += b.step()) {
                        for (int i = 0; i < n * kCell; i += 16) store16(py + i, f(load16(pa + i), load16(pb + i)));
                    }
                });
            });
        });
    });
}

inline void cast(const View& y, const View& a, int m0, int m1) {
    map_rows(y, a, m0, m1, [](Vec x) { return x; });
}

inline void act(const View& y, const View& a, Act kind, int m0, int m1) {
    switch (kind) {
        case Act::Silu:
            return map_rows(y, a, m0, m1, [](Vec x) { return silu(x); });
        case Act::GeluTanh:
            return map_rows(y, a, m0, m1, [](Vec x) { return gelu_tanh(x); });
        case Act::GeluErf:
            return map_rows(y, a, m0, m1, [](Vec x) { return gelu_erf(x); });
        case Act::None:
            return cast(y, a, m0, m1);
    }
}

inline void mul(const View& y, const View& a, const View& b, int m0, int m1) {
    map_rows(y, a, b, m0, m1, [](Vec p, Vec q) { return p * q; });
}

inline void add(const View& y, const View& a, const View& b, int m0, int m1) {
    map_rows(y, a, b, m0, m1, [](Vec p, Vec q) { return p + q; });
}

inline void scale(const View& y, const View& a, float s, int m0, int m1) {
    const Vec factor = Vec::set(s);
    map_rows(y, a, m0, m1, [=](Vec x) { return x * factor; });
}

DI_INLINE Vec soft_cap(Vec x, Vec cap) { return cap * tanh(x / cap); }

inline void softcap(const View& y, const View& a, float cap, int m0, int m1) {
    const Vec limit = Vec::set(cap);
    map_rows(y, a, m0, m1, [=](Vec x) { return soft_cap(x, limit); });
}

}  // namespace
}  // namespace di
