// Elementary functions over Vec, as docs/arithmetic.md defines them: the same bits on every tier.
// Included after the tier's vec.h. Programs run with flush-to-zero and denormals-are-zero.
#pragma once
#include "inline.h"

namespace di {
namespace {

constexpr float kLog2E = 1.44269504088896341f;

// 2^t for t < 128, or NaN; 0 below -126. A minimax polynomial of degree 5 with both ends exact; relative error about
// 2e-7.
DI_INLINE Vec exp2(Vec t) {
    const Vec r = fraction(t);
    Vec p = Vec::set(1.8793186e-3f);
    p = fma(p, r, Vec::set(8.990995e-3f));
    p = fma(p, r, Vec::set(5.5818677e-2f));
    p = fma(p, r, Vec::set(2.4015927e-1f));
    p = fma(p, r, Vec::set(6.931517e-1f));
    p = fma(p, r, Vec::set(1.0f));
    return scale_by_floor(p, t);
}

// e^x, for x over 88 that of 88; the exponent's rounding adds |x| · 6e-8 to the relative error.
DI_INLINE Vec exp(Vec x) {
    return exp2(min(Vec::set(88.0f), x) * Vec::set(kLog2E));  // in this order a NaN stays one
}

DI_INLINE Vec silu(Vec x) { return x / (Vec::set(1.0f) + exp(-x)); }

DI_INLINE Vec tanh(Vec x) { return Vec::set(1.0f) - Vec::set(2.0f) / (Vec::set(1.0f) + exp(Vec::set(2.0f) * x)); }

// x · sigmoid(2u): 0.5 · x · (1 + tanh(u)) without the cancellation.
DI_INLINE Vec gelu_tanh(Vec x) {
    const Vec u = Vec::set(0.7978845608f) * fma(Vec::set(0.044715f) * x * x, x, x);
    return x / (Vec::set(1.0f) + exp(Vec::set(-2.0f) * u));
}

// Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26; absolute error below 1.5e-7 before rounding.
DI_INLINE Vec erf(Vec x) {
    const Vec a = abs(x);
    const Vec t = Vec::set(1.0f) / fma(Vec::set(0.3275911f), a, Vec::set(1.0f));
    Vec p = Vec::set(1.061405429f);
    p = fma(p, t, Vec::set(-1.453152027f));
    p = fma(p, t, Vec::set(1.421413741f));
    p = fma(p, t, Vec::set(-0.284496736f));
    p = fma(p, t, Vec::set(0.254829592f));
    const Vec y = Vec::set(1.0f) - p * t * exp(-(a * a));
    return select(less(x, Vec::zero()), -y, y);
}

DI_INLINE Vec gelu_erf(Vec x) { return Vec::set(0.5f) * x * (Vec::set(1.0f) + erf(x / Vec::set(1.41421356237f))); }

}  // namespace
}  // namespace di
