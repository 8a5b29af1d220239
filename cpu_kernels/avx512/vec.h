// Vec of the AVX-512 tier: one zmm register. The AMX tier uses it too.
#pragma once
// GCC 12 sees uninitialized variables in its own AVX-512 header (GCC bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#include "../generic/inline.h"
#include "../layout.h"

namespace di {
namespace {

struct Vec {
    static constexpr int kGemmRows = 8;  // rows of the product kernel: 16 chains and a weight pair in 32 registers
    __m512 v;

    struct Mask {
        __mmask16 m;
        bool any() const { return m != 0; }
    };

    static DI_INLINE Vec zero() { return {_mm512_setzero_ps()}; }
    static DI_INLINE Vec set(float x) { return {_mm512_set1_ps(x)}; }
    static DI_INLINE Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
    static DI_INLINE Vec load_partial(const float* p, int n) { return {_mm512_maskz_loadu_ps(first_n(n).m, p)}; }
    static DI_INLINE Vec load_bf16(const bf16* p) {
        const __m512i u = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
        return {_mm512_castsi512_ps(_mm512_slli_epi32(u, 16))};
    }
    static DI_INLINE Vec load_f16(const f16* p) {
        return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
    }
    // One panel line: 16 pairs.
    static DI_INLINE void load_pairs_bf16(const bf16* p, Vec& even, Vec& odd) {
        const __m512i u = _mm512_loadu_si512(p);
        even.v = _mm512_castsi512_ps(_mm512_slli_epi32(u, 16));
        odd.v = _mm512_castsi512_ps(_mm512_and_si512(u, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
    }
    static DI_INLINE void load_pairs_f16(const f16* p, Vec& even, Vec& odd) {
        const __m512i u = _mm512_loadu_si512(p);
        even.v = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(u));
        odd.v = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(u, 16)));
    }

    // 16 dwords of packed codes.
    struct Words {
        __m512i w;
        DI_INLINE Words high() const { return {_mm512_srli_epi32(w, 16)}; }
    };
    static DI_INLINE Words load_words(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
    // The floats with the bits (word & mask) | rest.
    static DI_INLINE Vec field(Words a, uint32_t mask, uint32_t rest) {
        constexpr int kAndOr = 0xea;
        return {_mm512_castsi512_ps(_mm512_ternarylogic_epi32(a.w, _mm512_set1_epi32(static_cast<int>(mask)),
                                                              _mm512_set1_epi32(static_cast<int>(rest)), kAndOr))};
    }

    DI_INLINE void store(float* p) const { _mm512_storeu_ps(p, v); }
    DI_INLINE void store_partial(float* p, int n) const { _mm512_mask_storeu_ps(p, first_n(n).m, v); }
    DI_INLINE void store_bf16(bf16* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_bf16()); }
    // One panel line of numbers that bf16 holds exactly.
    static DI_INLINE void store_pairs_bf16(bf16* p, Vec even, Vec odd) {
        const __m512i low = _mm512_srli_epi32(_mm512_castps_si512(even.v), 16);
        _mm512_storeu_si512(p, _mm512_mask_blend_epi16(0xaaaaaaaau, low, _mm512_castps_si512(odd.v)));
    }
    DI_INLINE void store_f16(f16* p) const {
        constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, kNearest));
    }

    static DI_INLINE Mask first_n(int n) {
        return {static_cast<__mmask16>(n >= 16 ? 0xffffu : n <= 0 ? 0u : (1u << n) - 1u)};
    }
    DI_INLINE float lane(int i) const {
        alignas(64) float t[16];
        _mm512_store_ps(t, v);
        return t[i];
    }

    DI_INLINE float reduce_add() const {
        const __m256 a = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
        const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
        const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
        return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
    }
    DI_INLINE float reduce_max() const {
        if (_mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q)) return __builtin_nanf("");
        const __m256 a = _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
        const __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
        const __m128 c = _mm_max_ps(b, _mm_movehl_ps(b, b));
        return _mm_cvtss_f32(_mm_max_ss(c, _mm_movehdup_ps(c)));
    }

  private:
    // Round to nearest even; NaN stays NaN (quiet); a denormal becomes a signed zero.
    DI_INLINE __m256i to_bf16() const {
#ifdef __AVX512BF16__
        return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v));
#else
        const __m512i u = _mm512_castps_si512(v), high = _mm512_srli_epi32(u, 16);
        const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
        __m512i r = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(u, odd), _mm512_set1_epi32(0x7fff)), 16);
        const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
        r = _mm512_mask_or_epi32(r, nan, high, _mm512_set1_epi32(0x40));
        const __mmask16 tiny = _mm512_testn_epi32_mask(u, _mm512_set1_epi32(0x7f800000));
        r = _mm512_mask_and_epi32(r, tiny, high, _mm512_set1_epi32(0x8000));
        return _mm512_cvtepi32_epi16(r);
#endif
    }
};

DI_INLINE Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
DI_INLINE Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
DI_INLINE Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
DI_INLINE Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
DI_INLINE Vec operator-(Vec a) { return {_mm512_xor_ps(a.v, _mm512_set1_ps(-0.0f))}; }
DI_INLINE Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
DI_INLINE Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }  // a > b ? a : b
DI_INLINE Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
DI_INLINE Vec abs(Vec a) { return {_mm512_abs_ps(a.v)}; }
DI_INLINE Vec sqrt(Vec a) { return {_mm512_sqrt_ps(a.v)}; }
DI_INLINE Vec rint(Vec a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
// t - floor(t), rounded down.
DI_INLINE Vec fraction(Vec t) { return {_mm512_reduce_ps(t.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)}; }
// y · 2^floor(t), or 0 where t < -126; y in [1, 2).
DI_INLINE Vec scale_by_floor(Vec y, Vec t) { return {_mm512_scalef_ps(y.v, t.v)}; }

DI_INLINE Vec::Mask less(Vec a, Vec b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
DI_INLINE Vec::Mask less_equal(Vec a, Vec b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ)}; }
DI_INLINE Vec::Mask equal(Vec a, Vec b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ)}; }
DI_INLINE Vec::Mask is_nan(Vec a) { return {_mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q)}; }
DI_INLINE Vec::Mask operator&(Vec::Mask a, Vec::Mask b) { return {static_cast<__mmask16>(a.m & b.m)}; }
DI_INLINE Vec::Mask operator|(Vec::Mask a, Vec::Mask b) { return {static_cast<__mmask16>(a.m | b.m)}; }
DI_INLINE Vec::Mask operator!(Vec::Mask a) { return {static_cast<__mmask16>(~a.m)}; }
DI_INLINE Vec select(Vec::Mask m, Vec a, Vec b) { return {_mm512_mask_blend_ps(m.m, b.v, a.v)}; }

// 64 whole numbers on their way to bytes.
struct Integers {
    __m512i v[4];

    // x rounded to nearest even; |x| < 2³¹.
    static DI_INLINE Integers rounded(const Vec x[4]) {
        constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        Integers r;
        for (int i = 0; i < 4; ++i) r.v[i] = _mm512_cvt_roundps_epi32(x[i].v, kNearest);
        return r;
    }
    // To the sums of 16 lanes.
    DI_INLINE void add_to(int32_t* lanes) const {
        const __m512i sum = _mm512_add_epi32(_mm512_add_epi32(v[0], v[1]), _mm512_add_epi32(v[2], v[3]));
        _mm512_store_si512(lanes, _mm512_add_epi32(_mm512_load_si512(lanes), sum));
    }
    // As bytes, from -128 to 127. `past`: past the caches, to lines that begin at p.
    DI_INLINE void store(int8_t* p, bool past) const { store_words(p, words(0), words(2), past); }
    // As 256 · high + low, from -32768 to 32639.
    DI_INLINE void store(int8_t* high, int8_t* low, bool past) const {
        const __m512i half = _mm512_set1_epi16(128);
        const auto top = [&](__m512i w) { return _mm512_srai_epi16(_mm512_add_epi16(w, half), 8); };
        const auto rest = [](__m512i w) { return _mm512_srai_epi16(_mm512_slli_epi16(w, 8), 8); };
        store_words(high, top(words(0)), top(words(2)), past);
        store_words(low, rest(words(0)), rest(words(2)), past);
    }
    // What went past the caches is there for other threads, as soon as they know that it should be.
    static DI_INLINE void settle() { _mm_sfence(); }

  private:
    // Packing goes by quarters of a register: quarter q of the result holds quarter q of each of the numbers.
    DI_INLINE __m512i words(int i) const { return _mm512_packs_epi32(v[i], v[i + 1]); }
    static DI_INLINE void store_words(int8_t* p, __m512i a, __m512i b, bool past) {
        const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        const __m512i bytes = _mm512_permutexvar_epi32(order, _mm512_packs_epi16(a, b));
        past ? _mm512_stream_si512(reinterpret_cast<__m512i*>(p), bytes) : _mm512_storeu_si512(p, bytes);
    }
};

}  // namespace
}  // namespace di
