// Vec of the AVX2 tier (with FMA and F16C): two ymm registers.
#pragma once
#include <immintrin.h>

#include "../generic/inline.h"
#include "../layout.h"

namespace di {
namespace {

struct Vec {
    static constexpr int kGemmRows = 2;  // rows of the product kernel: 8 chains and a weight pair in 16 registers
    __m256 lo, hi;

    struct Mask {
        __m256 lo, hi;
        DI_INLINE bool any() const { return _mm256_movemask_ps(_mm256_or_ps(lo, hi)) != 0; }
    };

    static DI_INLINE Vec zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
    static DI_INLINE Vec set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
    static DI_INLINE Vec load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
    static DI_INLINE Vec load_partial(const float* p, int n) {
        const Mask m = first_n(n);
        return {_mm256_maskload_ps(p, _mm256_castps_si256(m.lo)), _mm256_maskload_ps(p + 8, _mm256_castps_si256(m.hi))};
    }
    static DI_INLINE Vec load_bf16(const bf16* p) { return {widen_bf16(p), widen_bf16(p + 8)}; }
    static DI_INLINE Vec load_f16(const f16* p) {
        return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
                _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
    }
    // One panel line: 16 pairs.
    static DI_INLINE void load_pairs_bf16(const bf16* p, Vec& even, Vec& odd) {
        const __m256i a = load_bits(p), b = load_bits(p + 16), high = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
        even = {_mm256_castsi256_ps(_mm256_slli_epi32(a, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(b, 16))};
        odd = {_mm256_castsi256_ps(_mm256_and_si256(a, high)), _mm256_castsi256_ps(_mm256_and_si256(b, high))};
    }
    static DI_INLINE void load_pairs_f16(const f16* p, Vec& even, Vec& odd) {
        const __m256i a = load_bits(p), b = load_bits(p + 16), low = _mm256_set1_epi32(0xffff);
        even = widen_f16(narrow_words(_mm256_and_si256(a, low), _mm256_and_si256(b, low)));
        odd = widen_f16(narrow_words(_mm256_srli_epi32(a, 16), _mm256_srli_epi32(b, 16)));
    }

    // 16 dwords of packed codes.
    struct Words {
        __m256i lo, hi;
        DI_INLINE Words high() const { return {_mm256_srli_epi32(lo, 16), _mm256_srli_epi32(hi, 16)}; }
    };
    static DI_INLINE Words load_words(const uint8_t* p) {
        const auto* q = reinterpret_cast<const __m256i*>(p);
        return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
    }
    // The floats with the bits (word & mask) | rest.
    static DI_INLINE Vec field(Words a, uint32_t mask, uint32_t rest) {
        const __m256i m = _mm256_set1_epi32(static_cast<int>(mask)), r = _mm256_set1_epi32(static_cast<int>(rest));
        return {_mm256_castsi256_ps(_mm256_or_si256(_mm256_and_si256(a.lo, m), r)),
                _mm256_castsi256_ps(_mm256_or_si256(_mm256_and_si256(a.hi, m), r))};
    }

    DI_INLINE void store(float* p) const {
        _mm256_storeu_ps(p, lo);
        _mm256_storeu_ps(p + 8, hi);
    }
    DI_INLINE void store_partial(float* p, int n) const {
        const Mask m = first_n(n);
        _mm256_maskstore_ps(p, _mm256_castps_si256(m.lo), lo);
        _mm256_maskstore_ps(p + 8, _mm256_castps_si256(m.hi), hi);
    }
    DI_INLINE void store_bf16(bf16* p) const {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow_words(narrow_bf16(lo), narrow_bf16(hi)));
    }
    // One panel line of numbers that bf16 holds exactly.
    static DI_INLINE void store_pairs_bf16(bf16* p, Vec even, Vec odd) {
        const auto line = [](__m256 e, __m256 o) {
            return _mm256_blend_epi16(_mm256_srli_epi32(_mm256_castps_si256(e), 16), _mm256_castps_si256(o), 0xaa);
        };
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), line(even.lo, odd.lo));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 16), line(even.hi, odd.hi));
    }
    DI_INLINE void store_f16(f16* p) const {
        constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(lo, kNearest));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(hi, kNearest));
    }

    static DI_INLINE Mask first_n(int n) {
        const __m256i count = _mm256_set1_epi32(n), lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        return {_mm256_castsi256_ps(_mm256_cmpgt_epi32(count, lanes)),
                _mm256_castsi256_ps(_mm256_cmpgt_epi32(count, _mm256_add_epi32(lanes, _mm256_set1_epi32(8))))};
    }
    DI_INLINE float lane(int i) const {
        alignas(32) float t[16];
        store(t);
        return t[i];
    }

    DI_INLINE float reduce_add() const {
        const __m256 a = _mm256_add_ps(lo, hi);
        const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
        const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
        return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
    }
    DI_INLINE float reduce_max() const {
        if (_mm256_movemask_ps(_mm256_cmp_ps(lo, hi, _CMP_UNORD_Q))) return __builtin_nanf("");
        const __m256 a = _mm256_max_ps(lo, hi);
        const __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
        const __m128 c = _mm_max_ps(b, _mm_movehl_ps(b, b));
        return _mm_cvtss_f32(_mm_max_ss(c, _mm_movehdup_ps(c)));
    }

  private:
    static DI_INLINE __m256i load_bits(const uint16_t* p) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    }
    static DI_INLINE __m256 widen_bf16(const bf16* p) {
        const __m256i u = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
        return _mm256_castsi256_ps(_mm256_slli_epi32(u, 16));
    }
    static DI_INLINE Vec widen_f16(__m256i u) {
        return {_mm256_cvtph_ps(_mm256_castsi256_si128(u)), _mm256_cvtph_ps(_mm256_extracti128_si256(u, 1))};
    }
    // 16 dwords below 2^16 to 16 words, in order.
    static DI_INLINE __m256i narrow_words(__m256i a, __m256i b) {
        return _mm256_permute4x64_epi64(_mm256_packus_epi32(a, b), 0xd8);
    }
    // Round to nearest even; NaN stays NaN (quiet); a denormal becomes a signed zero.
    static DI_INLINE __m256i narrow_bf16(__m256 x) {
        const __m256i u = _mm256_castps_si256(x), high = _mm256_srli_epi32(u, 16);
        const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
        __m256i r = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(u, odd), _mm256_set1_epi32(0x7fff)), 16);
        const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
        r = _mm256_blendv_epi8(r, _mm256_or_si256(high, _mm256_set1_epi32(0x40)), nan);
        const __m256i exponent = _mm256_and_si256(u, _mm256_set1_epi32(0x7f800000));
        const __m256i tiny = _mm256_cmpeq_epi32(exponent, _mm256_setzero_si256());
        return _mm256_blendv_epi8(r, _mm256_and_si256(high, _mm256_set1_epi32(0x8000)), tiny);
    }
};

DI_INLINE Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
DI_INLINE Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
DI_INLINE Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
DI_INLINE Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
DI_INLINE Vec operator-(Vec a) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_xor_ps(a.lo, sign), _mm256_xor_ps(a.hi, sign)};
}
DI_INLINE Vec fma(Vec a, Vec b, Vec c) {
    return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
DI_INLINE Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }  // a > b ? a : b
DI_INLINE Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
DI_INLINE Vec abs(Vec a) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
DI_INLINE Vec sqrt(Vec a) { return {_mm256_sqrt_ps(a.lo), _mm256_sqrt_ps(a.hi)}; }
DI_INLINE Vec rint(Vec a) {
    constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(a.lo, kNearest), _mm256_round_ps(a.hi, kNearest)};
}
DI_INLINE Vec floor(Vec a) {
    constexpr int kDown = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(a.lo, kDown), _mm256_round_ps(a.hi, kDown)};
}
DI_INLINE Vec pow2(Vec n) {
    const Vec t = n + Vec::set(0x1.8p23f + 127.0f);
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(t.lo), 23)),
            _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(t.hi), 23))};
}

template <int kPredicate>
DI_INLINE Vec::Mask compare(Vec a, Vec b) {
    return {_mm256_cmp_ps(a.lo, b.lo, kPredicate), _mm256_cmp_ps(a.hi, b.hi, kPredicate)};
}
DI_INLINE Vec::Mask less(Vec a, Vec b) { return compare<_CMP_LT_OQ>(a, b); }
DI_INLINE Vec::Mask less_equal(Vec a, Vec b) { return compare<_CMP_LE_OQ>(a, b); }
DI_INLINE Vec::Mask equal(Vec a, Vec b) { return compare<_CMP_EQ_OQ>(a, b); }
DI_INLINE Vec::Mask is_nan(Vec a) { return compare<_CMP_UNORD_Q>(a, a); }
DI_INLINE Vec::Mask operator&(Vec::Mask a, Vec::Mask b) {
    return {_mm256_and_ps(a.lo, b.lo), _mm256_and_ps(a.hi, b.hi)};
}
DI_INLINE Vec::Mask operator|(Vec::Mask a, Vec::Mask b) { return {_mm256_or_ps(a.lo, b.lo), _mm256_or_ps(a.hi, b.hi)}; }
DI_INLINE Vec::Mask operator!(Vec::Mask a) {
    const __m256 ones = _mm256_castsi256_ps(_mm256_set1_epi32(-1));
    return {_mm256_xor_ps(a.lo, ones), _mm256_xor_ps(a.hi, ones)};
}
DI_INLINE Vec select(Vec::Mask m, Vec a, Vec b) {
    return {_mm256_blendv_ps(b.lo, a.lo, m.lo), _mm256_blendv_ps(b.hi, a.hi, m.hi)};
}
// t - floor(t), rounded down.
DI_INLINE Vec fraction(Vec t) {
    const Vec n = floor(t), r = t - n;
    const Vec::Mask up = less(t, r + n);  // rounded up: the number before it, one less as an integer
    const auto before = [](__m256 x, __m256 is_up) {
        return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), _mm256_castps_si256(is_up)));
    };
    return {before(r.lo, up.lo), before(r.hi, up.hi)};
}
// y · 2^floor(t), or 0 where t < -126; y in [1, 2).
DI_INLINE Vec scale_by_floor(Vec y, Vec t) {
    return select(less(t, Vec::set(-126.0f)), Vec::zero(), y * pow2(floor(t)));
}

}  // namespace
}  // namespace di

#include "../generic/integers.h"
