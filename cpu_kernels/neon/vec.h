// Vec of the NEON tier: four 128-bit registers, baseline ARMv8-A.
#pragma once
#include <arm_neon.h>

#include "../generic/inline.h"
#include "../layout.h"

namespace di {
namespace {

struct Vec {
    static constexpr int kGemmRows = 2;  // rows of the product kernel: 16 chains and a weight pair in 32 registers
    float32x4_t q[4];

    struct Mask {
        uint32x4_t q[4];
        DI_INLINE bool any() const { return vmaxvq_u32(vorrq_u32(vorrq_u32(q[0], q[1]), vorrq_u32(q[2], q[3]))) != 0; }
    };

    template <class F>
    static DI_INLINE Vec each(F f) {
        return {{f(0), f(1), f(2), f(3)}};
    }
    template <class F>
    static DI_INLINE Mask test(F f) {
        return {{f(0), f(1), f(2), f(3)}};
    }

    static DI_INLINE Vec zero() { return set(0.0f); }
    static DI_INLINE Vec set(float x) {
        return each([=](int) { return vdupq_n_f32(x); });
    }
    static DI_INLINE Vec load(const float* p) {
        return each([=](int i) { return vld1q_f32(p + 4 * i); });
    }
    static DI_INLINE Vec load_partial(const float* p, int n) {
        float t[16] = {};
        for (int i = 0; i < 16 && i < n; ++i) t[i] = p[i];
        return load(t);
    }
    static DI_INLINE Vec load_bf16(const bf16* p) {
        return each([=](int i) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * i), 16)); });
    }
    static DI_INLINE Vec load_f16(const f16* p) {
        return each([=](int i) { return widen_f16(vld1_u16(p + 4 * i)); });
    }
    // One panel line: 16 pairs.
    static DI_INLINE void load_pairs_bf16(const bf16* p, Vec& even, Vec& odd) {
        const uint32x4_t high = vdupq_n_u32(0xffff0000u);
        even = each([=](int i) { return vreinterpretq_f32_u32(vshlq_n_u32(load_bits(p + 8 * i), 16)); });
        odd = each([=](int i) { return vreinterpretq_f32_u32(vandq_u32(load_bits(p + 8 * i), high)); });
    }
    static DI_INLINE void load_pairs_f16(const f16* p, Vec& even, Vec& odd) {
        even = each([=](int i) { return widen_f16(vmovn_u32(load_bits(p + 8 * i))); });
        odd = each([=](int i) { return widen_f16(vshrn_n_u32(load_bits(p + 8 * i), 16)); });
    }

    // 16 dwords of packed codes.
    struct Words {
        uint32x4_t q[4];
        DI_INLINE Words high() const {
            return {{vshrq_n_u32(q[0], 16), vshrq_n_u32(q[1], 16), vshrq_n_u32(q[2], 16), vshrq_n_u32(q[3], 16)}};
        }
    };
    static DI_INLINE Words load_words(const uint8_t* p) {
        const auto at = [=](int i) { return vreinterpretq_u32_u8(vld1q_u8(p + 16 * i)); };
        return {{at(0), at(1), at(2), at(3)}};
    }
    // The floats with the bits (word & mask) | rest.
    static DI_INLINE Vec field(const Words& a, uint32_t mask, uint32_t rest) {
        return each([&](int i) {
            return vreinterpretq_f32_u32(vorrq_u32(vandq_u32(a.q[i], vdupq_n_u32(mask)), vdupq_n_u32(rest)));
        });
    }

    DI_INLINE void store(float* p) const {
        for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, q[i]);
    }
    DI_INLINE void store_partial(float* p, int n) const {
        float t[16];
        store(t);
        for (int i = 0; i < 16 && i < n; ++i) p[i] = t[i];
    }
    DI_INLINE void store_bf16(bf16* p) const {
        for (int i = 0; i < 4; ++i) vst1_u16(p + 4 * i, narrow_bf16(q[i]));
    }
    // One panel line of numbers that bf16 holds exactly.
    static DI_INLINE void store_pairs_bf16(bf16* p, const Vec& even, const Vec& odd) {
        for (int i = 0; i < 4; ++i) {
            const uint32x4_t low = vshrq_n_u32(vreinterpretq_u32_f32(even.q[i]), 16);
            const uint32x4_t high = vandq_u32(vreinterpretq_u32_f32(odd.q[i]), vdupq_n_u32(0xffff0000u));
            vst1q_u16(p + 8 * i, vreinterpretq_u16_u32(vorrq_u32(low, high)));
        }
    }
    DI_INLINE void store_f16(f16* p) const {
        for (int i = 0; i < 4; ++i) vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(q[i])));
    }

    static DI_INLINE Mask first_n(int n) {
        const int32_t first[4] = {0, 1, 2, 3};
        const int32x4_t lanes = vld1q_s32(first);
        return test([=](int i) { return vcltq_s32(lanes, vdupq_n_s32(n - 4 * i)); });
    }
    DI_INLINE float lane(int i) const {
        float t[16];
        store(t);
        return t[i];
    }

    DI_INLINE float reduce_add() const {
        const float32x4_t b = vaddq_f32(vaddq_f32(q[0], q[2]), vaddq_f32(q[1], q[3]));
        const float32x2_t c = vadd_f32(vget_low_f32(b), vget_high_f32(b));
        return vget_lane_f32(c, 0) + vget_lane_f32(c, 1);
    }
    DI_INLINE float reduce_max() const {  // FMAX gives NaN for NaN
        return vmaxvq_f32(vmaxq_f32(vmaxq_f32(q[0], q[1]), vmaxq_f32(q[2], q[3])));
    }

  private:
    static DI_INLINE uint32x4_t load_bits(const uint16_t* p) { return vreinterpretq_u32_u16(vld1q_u16(p)); }
    static DI_INLINE float32x4_t widen_f16(uint16x4_t h) { return vcvt_f32_f16(vreinterpret_f16_u16(h)); }
    // Round to nearest even; NaN stays NaN (quiet); a denormal becomes a signed zero.
    static DI_INLINE uint16x4_t narrow_bf16(float32x4_t x) {
        const uint32x4_t u = vreinterpretq_u32_f32(x), high = vshrq_n_u32(u, 16), odd = vandq_u32(high, vdupq_n_u32(1));
        uint32x4_t r = vshrq_n_u32(vaddq_u32(vaddq_u32(u, odd), vdupq_n_u32(0x7fff)), 16);
        r = vbslq_u32(vceqq_f32(x, x), r, vorrq_u32(high, vdupq_n_u32(0x40)));
        const uint32x4_t normal = vtstq_u32(u, vdupq_n_u32(0x7f800000));
        return vmovn_u32(vbslq_u32(normal, r, vandq_u32(high, vdupq_n_u32(0x8000))));
    }
};

DI_INLINE Vec operator+(Vec a, Vec b) {
    return Vec::each([&](int i) { return vaddq_f32(a.q[i], b.q[i]); });
}
DI_INLINE Vec operator-(Vec a, Vec b) {
    return Vec::each([&](int i) { return vsubq_f32(a.q[i], b.q[i]); });
}
DI_INLINE Vec operator*(Vec a, Vec b) {
    return Vec::each([&](int i) { return vmulq_f32(a.q[i], b.q[i]); });
}
DI_INLINE Vec operator/(Vec a, Vec b) {
    return Vec::each([&](int i) { return vdivq_f32(a.q[i], b.q[i]); });
}
DI_INLINE Vec operator-(Vec a) {
    return Vec::each([&](int i) { return vnegq_f32(a.q[i]); });
}
DI_INLINE Vec fma(Vec a, Vec b, Vec c) {
    return Vec::each([&](int i) { return vfmaq_f32(c.q[i], a.q[i], b.q[i]); });
}
DI_INLINE Vec abs(Vec a) {
    return Vec::each([&](int i) { return vabsq_f32(a.q[i]); });
}
DI_INLINE Vec sqrt(Vec a) {
    return Vec::each([&](int i) { return vsqrtq_f32(a.q[i]); });
}
DI_INLINE Vec rint(Vec a) {
    return Vec::each([&](int i) { return vrndnq_f32(a.q[i]); });
}
DI_INLINE Vec floor(Vec a) {
    return Vec::each([&](int i) { return vrndmq_f32(a.q[i]); });
}
DI_INLINE Vec pow2(Vec n) {
    const Vec t = n + Vec::set(0x1.8p23f + 127.0f);
    return Vec::each([&](int i) { return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(t.q[i]), 23)); });
}

DI_INLINE Vec::Mask less(Vec a, Vec b) {
    return Vec::test([&](int i) { return vcltq_f32(a.q[i], b.q[i]); });
}
DI_INLINE Vec::Mask less_equal(Vec a, Vec b) {
    return Vec::test([&](int i) { return vcleq_f32(a.q[i], b.q[i]); });
}
DI_INLINE Vec::Mask equal(Vec a, Vec b) {
    return Vec::test([&](int i) { return vceqq_f32(a.q[i], b.q[i]); });
}
DI_INLINE Vec::Mask operator&(Vec::Mask a, Vec::Mask b) {
    return Vec::test([&](int i) { return vandq_u32(a.q[i], b.q[i]); });
}
DI_INLINE Vec::Mask operator|(Vec::Mask a, Vec::Mask b) {
    return Vec::test([&](int i) { return vorrq_u32(a.q[i], b.q[i]); });
}
DI_INLINE Vec::Mask operator!(Vec::Mask a) {
    return Vec::test([&](int i) { return vmvnq_u32(a.q[i]); });
}
DI_INLINE Vec::Mask is_nan(Vec a) { return !equal(a, a); }
DI_INLINE Vec select(Vec::Mask m, Vec a, Vec b) {
    return Vec::each([&](int i) { return vbslq_f32(m.q[i], a.q[i], b.q[i]); });
}
// t - floor(t), rounded down.
DI_INLINE Vec fraction(Vec t) {
    const Vec n = floor(t), r = t - n;
    const Vec::Mask up = less(t, r + n);  // rounded up: the number before it, one less as an integer
    return Vec::each([&](int i) { return vreinterpretq_f32_u32(vaddq_u32(vreinterpretq_u32_f32(r.q[i]), up.q[i])); });
}
// y · 2^floor(t), or 0 where t < -126; y in [1, 2).
DI_INLINE Vec scale_by_floor(Vec y, Vec t) {
    return select(less(t, Vec::set(-126.0f)), Vec::zero(), y * pow2(floor(t)));
}
DI_INLINE Vec max(Vec a, Vec b) { return select(less(b, a), a, b); }  // as on x86: b where either is NaN
DI_INLINE Vec min(Vec a, Vec b) { return select(less(a, b), a, b); }

}  // namespace
}  // namespace di

#include "../generic/integers.h"
