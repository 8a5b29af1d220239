// Elementary functions in double precision from + - * / alone, so that their bits are the same with every C library,
// compiler and tier. Errors are about one unit in the last place of a double: a result rounded to fp32 is the nearest
// one but for one case in tens of millions.
#pragma once
#include <cstdint>
#include <cstring>

namespace di {

inline uint64_t bits_of(double x) {
    uint64_t u;
    std::memcpy(&u, &x, sizeof u);
    return u;
}

inline double double_of(uint64_t u) {
    double x;
    std::memcpy(&x, &u, sizeof x);
    return x;
}

// The nearest integer, ties to even, for |x| < 2^51: adding 1.5 * 2^52 leaves no bits for a fraction.
inline double nearest(double x) { return (x + 6755399441055744.0) - 6755399441055744.0; }

constexpr double kLn2High = 0x1.62e42fefa38p-1;  // 42 bits: times an exponent it is exact
constexpr double kLn2Low = 0x1.ef35793c7673p-45;

// Natural logarithm of a positive, normal, finite x. x = m * 2^e with m in [sqrt(1/2), sqrt(2)); ln m = 2 artanh(s) = 2
// (s + s^3/3 + s^5/5 + …), s = (m - 1) / (m + 1), |s| < 0.172.
inline double log_double(double x) {
    const uint64_t u = bits_of(x);
    int e = static_cast<int>(u >> 52 & 0x7ff) - 1023;
    double m = double_of((u & 0x000fffffffffffff) | 0x3ff0000000000000);
    if (m > 1.4142135623730951) {
        m *= 0.5;
        ++e;
    }
    const double s = (m - 1) / (m + 1), z = s * s;
    double series = 1.0 / 25;
    for (int n = 23; n >= 3; n -= 2) series = series * z + 1.0 / n;
    return e * kLn2High + (2 * s + (2 * s * z * series + e * kLn2Low));
}

// e^x: x = k ln 2 + r with |r| < 0.347, and the Taylor series of e^r. Beyond +-700 the answer is infinity or 0.
inline double exp_double(double x) {
    if (!(x >= -700 && x <= 700)) return x < 0 ? 0.0 : x * 1e308;
    const double k = nearest(x * 1.4426950408889634);
    const double r = (x - k * kLn2High) - k * kLn2Low;
    double series = 1;
    for (int n = 15; n >= 1; --n) series = 1 + series * r / n;
    return series * double_of(static_cast<uint64_t>(static_cast<int64_t>(k) + 1023) << 52);
}

inline double pow_double(double base, double exponent) { return exp_double(exponent * log_double(base)); }

struct SinCos {
    double sin, cos;
};

// Sine and cosine of |x| <= 2^31, where x is an fp32 value. Cody and Waite's reduction: x - k * pi/2 with pi/2 in three
// parts of 22 bits, whose products with k are exact, and a fourth part; then Taylor series on [-pi/4, pi/4].
inline SinCos sincos_double(double x) {
    if (!(x >= -2147483648.0 && x <= 2147483648.0)) {
        const double nan = double_of(0x7ff8000000000000);
        return {nan, nan};
    }
    constexpr double kPart1 = 0x1.921fbp+0, kPart2 = 0x1.5110bp-22;
    constexpr double kPart3 = 0x1.184698p-44, kPart4 = 0x1.3198a2e037073p-69;
    const double k = nearest(x * 0.6366197723675814);
    const double r = (((x - k * kPart1) - k * kPart2) - k * kPart3) - k * kPart4;
    const double z = r * r;

    constexpr double kSin[] = {-1.0 / 6,
                               1.0 / 120,
                               -1.0 / 5040,
                               1.0 / 362880,
                               -1.0 / 39916800,
                               1.0 / 6227020800.0,
                               -1.0 / 1307674368000.0,
                               1.0 / 355687428096000.0};
    constexpr double kCos[] = {1.0 / 24,        -1.0 / 720,           1.0 / 40320,           -1.0 / 3628800,
                               1.0 / 479001600, -1.0 / 87178291200.0, 1.0 / 20922789888000.0};
    double s = 0, c = 0;
    for (int i = 7; i >= 0; --i) s = s * z + kSin[i];
    for (int i = 6; i >= 0; --i) c = c * z + kCos[i];
    s = r + r * (z * s);
    c = 1 - (0.5 * z - z * z * c);

    switch (static_cast<int64_t>(k) & 3) {
        case 0:
            return {s, c};
        case 1:
            return {c, -s};
        case 2:
            return {-s, -c};
        default:
            return {-c, s};
    }
}

}  // namespace di
