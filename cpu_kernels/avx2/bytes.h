// A ymm register of bytes, for the products of generic/dot.h.
#pragma once
#include <immintrin.h>

#include "../generic/inline.h"

namespace di {
namespace {

struct Ymm {
    static constexpr int kBytes = 32;
    static constexpr int kSums = 8;  // registers that sums may take of 16
    __m256i v;

    static DI_INLINE Ymm zero() { return {_mm256_setzero_si256()}; }
    static DI_INLINE Ymm load(const void* p) { return {_mm256_loadu_si256(static_cast<const __m256i*>(p))}; }
    static DI_INLINE Ymm broadcast(const void* p) {  // four bytes
        int32_t x;
        __builtin_memcpy(&x, p, sizeof x);
        return {_mm256_set1_epi32(x)};
    }
    static DI_INLINE Ymm ones() { return {_mm256_set1_epi16(1)}; }  // of words
    DI_INLINE void store(void* p) const { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }

    DI_INLINE Ymm low_nibbles() const { return {_mm256_and_si256(v, _mm256_set1_epi8(15))}; }
    DI_INLINE Ymm high_nibbles() const { return Ymm{_mm256_srli_epi16(v, 4)}.low_nibbles(); }
    DI_INLINE Ymm even_bytes() const { return {_mm256_and_si256(v, _mm256_set1_epi16(255))}; }
    DI_INLINE Ymm odd_bytes() const { return {_mm256_srli_epi16(v, 8)}; }

    DI_INLINE Ymm add(Ymm x) const { return {_mm256_add_epi32(v, x.v)}; }
    DI_INLINE Ymm shift_8() const { return {_mm256_srai_epi32(v, 8)}; }
    DI_INLINE Ymm low_8() const { return {_mm256_and_si256(v, _mm256_set1_epi32(255))}; }
    // Words: the sum of two products a dword.
    DI_INLINE Ymm add_products(Ymm a, Ymm b) const { return {_mm256_add_epi32(v, _mm256_madd_epi16(a.v, b.v))}; }
    // Unsigned times signed bytes: the sum of two products a word.
    DI_INLINE Ymm add_pairs(Ymm a, Ymm b) const {
        Ymm sum{_mm256_add_epi16(v, _mm256_maddubs_epi16(a.v, b.v))};
        asm("" : "+x"(sum.v));  // added one by one: a tree of sums needs more registers than there are
        return sum;
    }
#ifdef __AVXVNNI__
    // Unsigned times signed bytes: the sum of four products a dword.
    DI_INLINE Ymm dot(Ymm a, Ymm b) const { return {_mm256_dpbusd_avx_epi32(v, a.v, b.v)}; }
#endif
};

}  // namespace
}  // namespace di
