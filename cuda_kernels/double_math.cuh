// Elementary functions in double precision from + - * / alone: the series and the bits of the CPU's.
#pragma once
#include "device.cuh"

namespace di {

__device__ __forceinline__ double nearest(double x) { return (x + 6755399441055744.0) - 6755399441055744.0; }

constexpr double kLn2High = 0x1.62e42fefa38p-1;  // 42 bits: times an exponent it is exact
constexpr double kLn2Low = 0x1.ef35793c7673p-45;

// ln x for positive, normal, finite x: x = m · 2^e, ln m = 2 artanh((m - 1) / (m + 1)).
__device__ inline double log_double(double x) {
    const int64_t u = __double_as_longlong(x);
    int e = static_cast<int>(u >> 52 & 0x7ff) - 1023;
    double m = __longlong_as_double((u & 0x000fffffffffffffLL) | 0x3ff0000000000000LL);
    if (m > 1.4142135623730951) {
        m *= 0.5;
        ++e;
    }
    const double s = (m - 1) / (m + 1), z = s * s;
    double series = 1.0 / 25;
    for (int n = 23; n >= 3; n -= 2) series = series * z + 1.0 / n;
    return e * kLn2High + (2 * s + (2 * s * z * series + e * kLn2Low));
}

// x = k ln 2 + r and the Taylor series of e^r; beyond ±700 infinity or 0.
__device__ inline double exp_double(double x) {
    if (!(x >= -700 && x <= 700)) return x < 0 ? 0.0 : x * 1e308;
    const double k = nearest(x * 1.4426950408889634);
    const double r = (x - k * kLn2High) - k * kLn2Low;
    double series = 1;
    for (int n = 15; n >= 1; --n) series = 1 + series * r / n;
    return series * __longlong_as_double((static_cast<int64_t>(k) + 1023) << 52);
}

__device__ inline double pow_double(double base, double exponent) { return exp_double(exponent * log_double(base)); }

// Sine and cosine of |x| <= 2^31: Cody and Waite's reduction by pi/2 in four parts, then Taylor series.
__device__ inline void sincos_double(double x, double& sin, double& cos) {
    if (!(x >= -2147483648.0 && x <= 2147483648.0)) {
        sin = cos = __longlong_as_double(0x7ff8000000000000LL);
        return;
    }
    const double k = nearest(x * 0.6366197723675814);
    const double r = (((x - k * 0x1.921fbp+0) - k * 0x1.5110bp-22) - k * 0x1.184698p-44) - k * 0x1.3198a2e037073p-69;
    const double z = r * r;
    double s = 1.0 / 355687428096000.0;
    s = s * z + -1.0 / 1307674368000.0;
    s = s * z + 1.0 / 6227020800.0;
    s = s * z + -1.0 / 39916800;
    s = s * z + 1.0 / 362880;
    s = s * z + -1.0 / 5040;
    s = s * z + 1.0 / 120;
    s = s * z + -1.0 / 6;
    double c = 1.0 / 20922789888000.0;
    c = c * z + -1.0 / 87178291200.0;
    c = c * z + 1.0 / 479001600;
    c = c * z + -1.0 / 3628800;
    c = c * z + 1.0 / 40320;
    c = c * z + -1.0 / 720;
    c = c * z + 1.0 / 24;
    s = r + r * (z * s);
    c = 1 - (0.5 * z - z * z * c);
    const int quadrant = static_cast<int>(static_cast<int64_t>(k) & 3);
    sin = quadrant == 0 ? s : quadrant == 1 ? c : quadrant == 2 ? -s : -c;
    cos = quadrant == 0 ? c : quadrant == 1 ? -s : quadrant == 2 ? -c : s;
}

}  // namespace di
