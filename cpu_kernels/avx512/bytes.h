// A zmm register of bytes, for the products of generic/dot.h. Included after vec.h.
#pragma once
#include "vec.h"

namespace di {
namespace {

struct Zmm {
    static constexpr int kBytes = 64;
    static constexpr int kSums = 16;  // registers that sums may take of 32
    __m512i v;

    static DI_INLINE Zmm zero() { return {_mm512_setzero_si512()}; }
    static DI_INLINE Zmm load(const void* p) { return {_mm512_loadu_si512(p)}; }
    static DI_INLINE Zmm broadcast(const void* p) {  // four bytes
        int32_t x;
        __builtin_memcpy(&x, p, sizeof x);
        return {_mm512_set1_epi32(x)};
    }
    static DI_INLINE Zmm ones() { return {_mm512_set1_epi16(1)}; }  // of words
    DI_INLINE void store(void* p) const { _mm512_storeu_si512(p, v); }

    DI_INLINE Zmm low_nibbles() const { return {_mm512_and_si512(v, _mm512_set1_epi8(15))}; }
    DI_INLINE Zmm high_nibbles() const { return Zmm{_mm512_srli_epi16(v, 4)}.low_nibbles(); }
    DI_INLINE Zmm even_bytes() const { return {_mm512_and_si512(v, _mm512_set1_epi16(255))}; }
    DI_INLINE Zmm odd_bytes() const { return {_mm512_srli_epi16(v, 8)}; }

    DI_INLINE Zmm add(Zmm x) const { return {_mm512_add_epi32(v, x.v)}; }
    DI_INLINE Zmm shift_8() const { return {_mm512_srai_epi32(v, 8)}; }
    DI_INLINE Zmm low_8() const { return {_mm512_and_si512(v, _mm512_set1_epi32(255))}; }
    // Words: the sum of two products a dword.
    DI_INLINE Zmm add_products(Zmm a, Zmm b) const { return {_mm512_add_epi32(v, _mm512_madd_epi16(a.v, b.v))}; }
    // Unsigned times signed bytes: the sum of two products a word.
    DI_INLINE Zmm add_pairs(Zmm a, Zmm b) const {
        Zmm sum{_mm512_add_epi16(v, _mm512_maddubs_epi16(a.v, b.v))};
        asm("" : "+v"(sum.v));  // added one by one: a tree of sums needs more registers than there are
        return sum;
    }
#ifdef __AVX512VNNI__
    // Unsigned times signed bytes: the sum of four products a dword.
    DI_INLINE Zmm dot(Zmm a, Zmm b) const { return {_mm512_dpbusd_epi32(v, a.v, b.v)}; }
#endif
};

}  // namespace
}  // namespace di
