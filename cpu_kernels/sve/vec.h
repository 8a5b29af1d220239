// Vec for SVE: one, two or four registers of a vector length that the build fixes (-msve-vector-bits=512, 256 or 128).
#pragma once
#include <arm_sve.h>

#include "../generic/inline.h"
#include "../layout.h"

namespace di {
namespace {

#define DI_SVE_FIXED __attribute__((arm_sve_vector_bits(__ARM_FEATURE_SVE_BITS)))
using SveFloats = svfloat32_t DI_SVE_FIXED;
using SveWords = svuint32_t DI_SVE_FIXED;
using SveMask = svbool_t DI_SVE_FIXED;
#undef DI_SVE_FIXED

struct Vec {
    static constexpr int kLanes = __ARM_FEATURE_SVE_BITS / 32;  // of a register
    static constexpr int kParts = 16 / kLanes;
    static constexpr int kGemmRows = kParts == 1 ? 8 : kParts == 2 ? 4 : 2;  // rows of the product kernel
    static_assert(kParts >= 1, "a Vec is 16 lanes: vectors are at most 512 bits long");
    SveFloats v[kParts];

    struct Mask {
        SveMask v[kParts];
        DI_INLINE bool any() const {
            bool r = false;
            for (int i = 0; i < kParts; ++i) r |= svptest_any(svptrue_b32(), v[i]);
            return r;
        }
    };

    template <class F>
    static DI_INLINE Vec each(F f) {
        Vec r;
        for (int i = 0; i < kParts; ++i) r.v[i] = f(i);
        return r;
    }
    template <class F>
    static DI_INLINE Mask test(F f) {
        Mask r;
        for (int i = 0; i < kParts; ++i) r.v[i] = f(i);
        return r;
    }

    static DI_INLINE Vec zero() { return set(0.0f); }
    static DI_INLINE Vec set(float x) {
        return each([=](int) { return svdup_f32(x); });
    }
    static DI_INLINE Vec load(const float* p) {
        return each([=](int i) { return svld1_f32(svptrue_b32(), p + i * kLanes); });
    }
    static DI_INLINE Vec load_partial(const float* p, int n) {
        const Mask m = first_n(n);
        return each([&](int i) { return svld1_f32(m.v[i], p + i * kLanes); });
    }
    static DI_INLINE Vec load_bf16(const bf16* p) {
        return each([=](int i) { return high_half(svld1uh_u32(svptrue_b32(), p + i * kLanes)); });
    }
    static DI_INLINE Vec load_f16(const f16* p) {
        return each([=](int i) { return widen_f16(svld1uh_u32(svptrue_b32(), p + i * kLanes)); });
    }
    // One panel line: 16 pairs.
    static DI_INLINE void load_pairs_bf16(const bf16* p, Vec& even, Vec& odd) {
        even = each([=](int i) { return high_half(load_bits(p, i)); });
        odd = each(
            [=](int i) { return svreinterpret_f32_u32(svand_n_u32_x(svptrue_b32(), load_bits(p, i), 0xffff0000u)); });
    }
    static DI_INLINE void load_pairs_f16(const f16* p, Vec& even, Vec& odd) {
        even = each([=](int i) { return widen_f16(load_bits(p, i)); });
        odd = each([=](int i) { return widen_f16(svlsr_n_u32_x(svptrue_b32(), load_bits(p, i), 16)); });
    }

    // 16 dwords of packed codes.
    struct Words {
        SveWords v[kParts];
        DI_INLINE Words high() const {
            Words r;
            for (int i = 0; i < kParts; ++i) r.v[i] = svlsr_n_u32_x(svptrue_b32(), v[i], 16);
            return r;
        }
    };
    static DI_INLINE Words load_words(const uint8_t* p) {
        Words r;
        for (int i = 0; i < kParts; ++i)
            r.v[i] = svld1_u32(svptrue_b32(), reinterpret_cast<const uint32_t*>(p) + i * kLanes);
        return r;
    }
    // The floats with the bits (word & mask) | rest.
    static DI_INLINE Vec field(const Words& a, uint32_t mask, uint32_t rest) {
        const svbool_t all = svptrue_b32();
        return each(
            [&](int i) { return svreinterpret_f32_u32(svorr_n_u32_x(all, svand_n_u32_x(all, a.v[i], mask), rest)); });
    }

    DI_INLINE void store(float* p) const {
        for (int i = 0; i < kParts; ++i) svst1_f32(svptrue_b32(), p + i * kLanes, v[i]);
    }
    DI_INLINE void store_partial(float* p, int n) const {
        const Mask m = first_n(n);
        for (int i = 0; i < kParts; ++i) svst1_f32(m.v[i], p + i * kLanes, v[i]);
    }
    DI_INLINE void store_bf16(bf16* p) const {
        for (int i = 0; i < kParts; ++i) svst1h_u32(svptrue_b32(), p + i * kLanes, narrow_bf16(v[i]));
    }
    // One panel line of numbers that bf16 holds exactly.
    static DI_INLINE void store_pairs_bf16(bf16* p, const Vec& even, const Vec& odd) {
        const svbool_t all = svptrue_b32();
        for (int i = 0; i < kParts; ++i) {
            const svuint32_t low = svlsr_n_u32_x(all, svreinterpret_u32_f32(even.v[i]), 16);
            const svuint32_t high = svand_n_u32_x(all, svreinterpret_u32_f32(odd.v[i]), 0xffff0000u);
            svst1_u32(all, reinterpret_cast<uint32_t*>(p) + i * kLanes, svorr_u32_x(all, low, high));
        }
    }
    DI_INLINE void store_f16(f16* p) const {
        const svbool_t all = svptrue_b32();
        for (int i = 0; i < kParts; ++i) {
            svst1h_u32(all, p + i * kLanes, svreinterpret_u32_f16(svcvt_f16_f32_x(all, v[i])));
        }
    }

    static DI_INLINE Mask first_n(int n) {
        return test([=](int i) { return svwhilelt_b32_s32(i * kLanes, n); });
    }
    DI_INLINE float lane(int i) const {
        float t[16];
        store(t);
        return t[i];
    }

    DI_INLINE float reduce_add() const {
        float t[16];
        store(t);
        for (int step = 8; step > 0; step /= 2) {
            for (int i = 0; i < step; ++i) t[i] = t[i] + t[i + step];
        }
        return t[0];
    }
    DI_INLINE float reduce_max() const {  // FMAX gives NaN for NaN
        const svbool_t all = svptrue_b32();
        svfloat32_t m = v[0];
        for (int i = 1; i < kParts; ++i) m = svmax_f32_x(all, m, v[i]);
        return svmaxv_f32(all, m);
    }

  private:
    static DI_INLINE svuint32_t load_bits(const uint16_t* p, int part) {
        return svld1_u32(svptrue_b32(), reinterpret_cast<const uint32_t*>(p) + part * kLanes);
    }
    static DI_INLINE svfloat32_t high_half(svuint32_t u) {
        return svreinterpret_f32_u32(svlsl_n_u32_x(svptrue_b32(), u, 16));
    }
    static DI_INLINE svfloat32_t widen_f16(svuint32_t low) {
        return svcvt_f32_f16_x(svptrue_b32(), svreinterpret_f16_u32(low));
    }
    // Round to nearest even; NaN stays NaN (quiet); a denormal becomes a signed zero.
    static DI_INLINE svuint32_t narrow_bf16(svfloat32_t x) {
        const svbool_t all = svptrue_b32();
        const svuint32_t u = svreinterpret_u32_f32(x), high = svlsr_n_u32_x(all, u, 16);
        svuint32_t r = svadd_n_u32_x(all, svadd_u32_x(all, u, svand_n_u32_x(all, high, 1)), 0x7fff);
        r = svlsr_n_u32_x(all, r, 16);
        r = svsel_u32(svcmpuo_f32(all, x, x), svorr_n_u32_x(all, high, 0x40), r);
        const svbool_t tiny = svcmpeq_n_u32(all, svand_n_u32_x(all, u, 0x7f800000), 0);
        return svsel_u32(tiny, svand_n_u32_x(all, high, 0x8000), r);
    }
};

DI_INLINE Vec operator+(Vec a, Vec b) {
    return Vec::each([&](int i) { return svadd_f32_x(svptrue_b32(), a.v[i], b.v[i]); });
}
DI_INLINE Vec operator-(Vec a, Vec b) {
    return Vec::each([&](int i) { return svsub_f32_x(svptrue_b32(), a.v[i], b.v[i]); });
}
DI_INLINE Vec operator*(Vec a, Vec b) {
    return Vec::each([&](int i) { return svmul_f32_x(svptrue_b32(), a.v[i], b.v[i]); });
}
DI_INLINE Vec operator/(Vec a, Vec b) {
    return Vec::each([&](int i) { return svdiv_f32_x(svptrue_b32(), a.v[i], b.v[i]); });
}
DI_INLINE Vec operator-(Vec a) {
    return Vec::each([&](int i) { return svneg_f32_x(svptrue_b32(), a.v[i]); });
}
DI_INLINE Vec fma(Vec a, Vec b, Vec c) {
    return Vec::each([&](int i) { return svmla_f32_x(svptrue_b32(), c.v[i], a.v[i], b.v[i]); });
}
DI_INLINE Vec abs(Vec a) {
    return Vec::each([&](int i) { return svabs_f32_x(svptrue_b32(), a.v[i]); });
}
DI_INLINE Vec sqrt(Vec a) {
    return Vec::each([&](int i) { return svsqrt_f32_x(svptrue_b32(), a.v[i]); });
}
DI_INLINE Vec rint(Vec a) {
    return Vec::each([&](int i) { return svrintn_f32_x(svptrue_b32(), a.v[i]); });
}
DI_INLINE Vec floor(Vec a) {
    return Vec::each([&](int i) { return svrintm_f32_x(svptrue_b32(), a.v[i]); });
}
DI_INLINE Vec pow2(Vec n) {
    const Vec t = n + Vec::set(0x1.8p23f + 127.0f);
    return Vec::each(
        [&](int i) { return svreinterpret_f32_u32(svlsl_n_u32_x(svptrue_b32(), svreinterpret_u32_f32(t.v[i]), 23)); });
}

DI_INLINE Vec::Mask less(Vec a, Vec b) {
    return Vec::test([&](int i) { return svcmplt_f32(svptrue_b32(), a.v[i], b.v[i]); });
}
DI_INLINE Vec::Mask less_equal(Vec a, Vec b) {
    return Vec::test([&](int i) { return svcmple_f32(svptrue_b32(), a.v[i], b.v[i]); });
}
DI_INLINE Vec::Mask equal(Vec a, Vec b) {
    return Vec::test([&](int i) { return svcmpeq_f32(svptrue_b32(), a.v[i], b.v[i]); });
}
DI_INLINE Vec::Mask is_nan(Vec a) {
    return Vec::test([&](int i) { return svcmpuo_f32(svptrue_b32(), a.v[i], a.v[i]); });
}
DI_INLINE Vec::Mask operator&(Vec::Mask a, Vec::Mask b) {
    return Vec::test([&](int i) { return svand_b_z(svptrue_b32(), a.v[i], b.v[i]); });
}
DI_INLINE Vec::Mask operator|(Vec::Mask a, Vec::Mask b) {
    return Vec::test([&](int i) { return svorr_b_z(svptrue_b32(), a.v[i], b.v[i]); });
}
DI_INLINE Vec::Mask operator!(Vec::Mask a) {
    return Vec::test([&](int i) { return svnot_b_z(svptrue_b32(), a.v[i]); });
}
DI_INLINE Vec select(Vec::Mask m, Vec a, Vec b) {
    return Vec::each([&](int i) { return svsel_f32(m.v[i], a.v[i], b.v[i]); });
}
// t - floor(t), rounded down.
DI_INLINE Vec fraction(Vec t) {
    const Vec n = floor(t), r = t - n;
    const Vec::Mask up = less(t, r + n);  // rounded up: the number before it, one less as an integer
    return Vec::each(
        [&](int i) { return svreinterpret_f32_u32(svsub_n_u32_m(up.v[i], svreinterpret_u32_f32(r.v[i]), 1)); });
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
