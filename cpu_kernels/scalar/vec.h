// Vec of the scalar tier: 16 floats in an array, plain C++. It defines what every other tier's Vec gives, bit for bit.
#pragma once
#include "../generic/inline.h"
#include "../layout.h"

namespace di {
namespace {

DI_INLINE uint32_t bits_of(float x) {
    uint32_t u;
    __builtin_memcpy(&u, &x, sizeof u);
    return u;
}

DI_INLINE float float_of(uint32_t u) {
    float x;
    __builtin_memcpy(&x, &u, sizeof x);
    return x;
}

DI_INLINE float widen_bf16(bf16 h) { return float_of(static_cast<uint32_t>(h) << 16); }

// Round to nearest even; a NaN stays a NaN (quiet), a denormal becomes a signed zero, as in VCVTNEPS2BF16.
DI_INLINE bf16 narrow_bf16(float x) {
    const uint32_t u = bits_of(x), magnitude = u & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return static_cast<bf16>(u >> 16 | 0x40u);
    if (magnitude < 0x00800000u) return static_cast<bf16>(u >> 16 & 0x8000u);
    return static_cast<bf16>((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

// Denormal halves are widened by a multiplication of normal numbers: flush-to-zero must not see them.
DI_INLINE float widen_f16(f16 h) {
    const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16, exponent = h >> 10 & 31u, mantissa = h & 0x3ffu;
    if (exponent == 0) return float_of(bits_of(static_cast<float>(mantissa) * 0x1p-24f) | sign);
    if (exponent == 31) return float_of(sign | 0x7f800000u | mantissa << 13 | (mantissa ? 0x400000u : 0u));
    return float_of(sign | (exponent + 112) << 23 | mantissa << 13);
}

DI_INLINE f16 narrow_f16(float x) {
    const uint32_t u = bits_of(x), sign = u >> 16 & 0x8000u, a = u & 0x7fffffffu;
    if (a > 0x7f800000u) return static_cast<f16>(sign | 0x7e00u | (a >> 13 & 0x3ffu));
    if (a >= 0x477ff000u) return static_cast<f16>(sign | 0x7c00u);  // 65520 and above
    if (a < 0x38800000u) {                                          // below 2^-14: a denormal half
        const float steps = a < 0x00800000u ? 0.0f : float_of(a) * 0x1p24f;
        return static_cast<f16>(sign | (bits_of(steps + 0x1p23f) - 0x4b000000u));
    }
    return static_cast<f16>(sign | (a + 0xfffu + (a >> 13 & 1u) - 0x38000000u) >> 13);
}

struct Vec {
    static constexpr int kGemmRows = 1;  // rows of the product kernel
    float f[16];

    struct Mask {
        bool b[16];
        bool any() const {
            bool r = false;
            for (bool x : b) r |= x;
            return r;
        }
    };

    template <class F>
    static inline Vec each(F fn) {
        Vec r;
#pragma GCC unroll 1
        for (int i = 0; i < 16; ++i) r.f[i] = fn(i);
        return r;
    }
    template <class F>
    static DI_INLINE Mask test(F fn) {
        Mask r;
#pragma GCC unroll 1
        for (int i = 0; i < 16; ++i) r.b[i] = fn(i);
        return r;
    }

    static Vec zero() { return set(0.0f); }
    static Vec set(float x) {
        return each([=](int) { return x; });
    }
    static Vec load(const float* p) {
        return each([=](int i) { return p[i]; });
    }
    static Vec load_partial(const float* p, int n) {
        return each([=](int i) { return i < n ? p[i] : 0.0f; });
    }
    static Vec load_bf16(const bf16* p) {
        return each([=](int i) { return widen_bf16(p[i]); });
    }
    static Vec load_f16(const f16* p) {
        return each([=](int i) { return widen_f16(p[i]); });
    }
    static void load_pairs_bf16(const bf16* p, Vec& even, Vec& odd) {
        even = each([=](int i) { return widen_bf16(p[2 * i]); });
        odd = each([=](int i) { return widen_bf16(p[2 * i + 1]); });
    }
    static void load_pairs_f16(const f16* p, Vec& even, Vec& odd) {
        even = each([=](int i) { return widen_f16(p[2 * i]); });
        odd = each([=](int i) { return widen_f16(p[2 * i + 1]); });
    }
    // 16 dwords of packed codes.
    struct Words {
        uint32_t w[16];
        Words high() const {
            Words r;
            for (int i = 0; i < 16; ++i) r.w[i] = w[i] >> 16;
            return r;
        }
    };
    static Words load_words(const uint8_t* p) {
        Words r;
        __builtin_memcpy(r.w, p, sizeof r.w);
        return r;
    }
    // The floats with the bits (word & mask) | rest.
    static Vec field(const Words& a, uint32_t mask, uint32_t rest) {
        return each([&](int i) { return float_of((a.w[i] & mask) | rest); });
    }

    void store(float* p) const { store_partial(p, 16); }
    void store_partial(float* p, int n) const {
        for (int i = 0; i < 16 && i < n; ++i) p[i] = f[i];
    }
    void store_bf16(bf16* p) const {
        for (int i = 0; i < 16; ++i) p[i] = narrow_bf16(f[i]);
    }
    // One panel line of numbers that bf16 holds exactly.
    static void store_pairs_bf16(bf16* p, const Vec& even, const Vec& odd) {
        for (int i = 0; i < 16; ++i) {
            p[2 * i] = static_cast<bf16>(bits_of(even.f[i]) >> 16);
            p[2 * i + 1] = static_cast<bf16>(bits_of(odd.f[i]) >> 16);
        }
    }
    void store_f16(f16* p) const {
        for (int i = 0; i < 16; ++i) p[i] = narrow_f16(f[i]);
    }

    static Mask first_n(int n) {
        return test([=](int i) { return i < n; });
    }
    float lane(int i) const { return f[i]; }

    float reduce_add() const {
        float t[8];
        for (int i = 0; i < 8; ++i) t[i] = f[i] + f[i + 8];
        for (int step = 4; step > 0; step /= 2) {
            for (int i = 0; i < step; ++i) t[i] = t[i] + t[i + step];
        }
        return t[0];
    }
    float reduce_max() const {
        float r = f[0];
        for (float x : f) r = r != r || r > x ? r : x;
        return r;
    }
};

inline Vec operator+(Vec a, Vec b) {
    return Vec::each([&](int i) { return a.f[i] + b.f[i]; });
}
inline Vec operator-(Vec a, Vec b) {
    return Vec::each([&](int i) { return a.f[i] - b.f[i]; });
}
inline Vec operator*(Vec a, Vec b) {
    return Vec::each([&](int i) { return a.f[i] * b.f[i]; });
}
inline Vec operator/(Vec a, Vec b) {
    return Vec::each([&](int i) { return a.f[i] / b.f[i]; });
}
inline Vec operator-(Vec a) {
    return Vec::each([&](int i) { return float_of(bits_of(a.f[i]) ^ 0x80000000u); });
}
inline Vec fma(Vec a, Vec b, Vec c) {
    return Vec::each([&](int i) { return __builtin_fmaf(a.f[i], b.f[i], c.f[i]); });
}
// a > b ? a : b, so b where either is NaN.
inline Vec max(Vec a, Vec b) {
    return Vec::each([&](int i) { return a.f[i] > b.f[i] ? a.f[i] : b.f[i]; });
}
inline Vec min(Vec a, Vec b) {
    return Vec::each([&](int i) { return a.f[i] < b.f[i] ? a.f[i] : b.f[i]; });
}
inline Vec abs(Vec a) {
    return Vec::each([&](int i) { return float_of(bits_of(a.f[i]) & 0x7fffffffu); });
}
inline Vec sqrt(Vec a) {
    return Vec::each([&](int i) { return __builtin_sqrtf(a.f[i]); });
}
inline Vec rint(Vec a) {
    return Vec::each([&](int i) { return __builtin_rintf(a.f[i]); });
}
inline Vec floor(Vec a) {
    return Vec::each([&](int i) { return __builtin_floorf(a.f[i]); });
}
// 2^n for integral n in [-126, 127]: n + 127 becomes the low bits of a float near 1.5 * 2^23, then the exponent.
inline Vec pow2(Vec n) {
    return Vec::each([&](int i) { return float_of(bits_of(n.f[i] + (0x1.8p23f + 127.0f)) << 23); });
}

inline Vec::Mask less(Vec a, Vec b) {
    return Vec::test([&](int i) { return a.f[i] < b.f[i]; });
}
inline Vec::Mask less_equal(Vec a, Vec b) {
    return Vec::test([&](int i) { return a.f[i] <= b.f[i]; });
}
inline Vec::Mask equal(Vec a, Vec b) {
    return Vec::test([&](int i) { return a.f[i] == b.f[i]; });
}
inline Vec::Mask is_nan(Vec a) {
    return Vec::test([&](int i) { return a.f[i] != a.f[i]; });
}
inline Vec::Mask operator&(Vec::Mask a, Vec::Mask b) {
    return Vec::test([&](int i) { return a.b[i] && b.b[i]; });
}
inline Vec::Mask operator|(Vec::Mask a, Vec::Mask b) {
    return Vec::test([&](int i) { return a.b[i] || b.b[i]; });
}
inline Vec::Mask operator!(Vec::Mask a) {
    return Vec::test([&](int i) { return !a.b[i]; });
}
inline Vec select(Vec::Mask m, Vec a, Vec b) {
    return Vec::each([&](int i) { return m.b[i] ? a.f[i] : b.f[i]; });
}
// t - floor(t), rounded down.
inline Vec fraction(Vec t) {
    return Vec::each([&](int i) {
        const float n = __builtin_floorf(t.f[i]), r = t.f[i] - n;
        return r + n > t.f[i] ? float_of(bits_of(r) - 1) : r;  // rounded up: the number before it
    });
}
// y · 2^floor(t), or 0 where t < -126; y in [1, 2).
inline Vec scale_by_floor(Vec y, Vec t) { return select(less(t, Vec::set(-126.0f)), Vec::zero(), y * pow2(floor(t))); }

}  // namespace
}  // namespace di

#include "../generic/integers.h"
