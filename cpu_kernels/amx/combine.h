// What becomes of a group's exact sums: T = 256 · high + low - zero · Σa, rounded once, times sw · sx, plus the totals.
#pragma once
#include "../avx512/vec.h"
#include "../generic/gemm_quant.h"
#include "tile.h"

namespace di {
namespace {

// Up to 16 rows of one group and panel. The sums are tiles side by side: 256 to the next 16 columns, `low` from the
// high plane's to the low plane's. The steps of rows: 16 in a tile, 32 in the grid and in the totals.
struct GroupSums {
    const int32_t* tiles;
    long low;
    const float* panel;     // 32 scales, then 32 zero points as int32
    const float* scales;    // of the rows
    const float* integers;  // Σa of the rows: int32 bits
    const float* totals;    // of the groups before, or null

    DI_INLINE const int32_t* zeros() const { return reinterpret_cast<const int32_t*>(panel + 32); }

    // Those from `rows` on.
    GroupSums from(int rows) const {
        return {tiles + rows * 16,
                low,
                panel,
                scales + rows * 32,
                integers + rows * 32,
                totals ? totals + rows * 32 : nullptr};
    }
};

template <int kPlanes, bool kZeros>
DI_INLINE __m512 round_int32(const GroupSums& s, const int32_t* at, int h, int32_t integers) {
    __m512i t = _mm512_load_si512(at);
    if (kPlanes == 2) t = _mm512_add_epi32(_mm512_slli_epi32(t, 8), _mm512_load_si512(at + s.low));
    if (kZeros) {
        const __m512i zeros = _mm512_load_si512(s.zeros() + 16 * h);
        t = _mm512_sub_epi32(t, _mm512_mullo_epi32(zeros, _mm512_set1_epi32(integers)));
    }
    return _mm512_cvtepi32_ps(t);
}

template <int kPlanes, bool kZeros>
DI_INLINE __m512 round_double(const GroupSums& s, const int32_t* at, int h, int32_t integers) {
    const auto wide = [](const int32_t* p) {
        return _mm512_cvtepi32_pd(_mm256_load_si256(reinterpret_cast<const __m256i*>(p)));
    };
    __m256 half[2];
    for (int i = 0; i < 2; ++i, at += 8) {
        __m512d t = wide(at);
        if (kPlanes == 2) t = _mm512_fmadd_pd(t, _mm512_set1_pd(256.0), wide(at + s.low));
        if (kZeros) t = _mm512_fnmadd_pd(wide(s.zeros() + 16 * h + 8 * i), _mm512_set1_pd(integers), t);
        half[i] = _mm512_cvtpd_ps(t);
    }
    return _mm512_insertf32x8(_mm512_castps256_ps512(half[0]), half[1], 1);
}

// Whether T fits int32.
enum class Fits { Never, Mostly, Always };

DI_INLINE Fits fits_of(const QuantWeight& w, int planes) {
    if (fits_int32(w, planes)) return Fits::Always;
    constexpr int kMostK = 1 << 14;  // |low| < 2²⁹
    return planes == 2 && w.group <= kMostK ? Fits::Mostly : Fits::Never;
}

// Fits::Mostly: whether it does in this row, as |256 · high| <= 2³⁰ and |zero · Σa| <= 2²⁹. round_double() takes three
// times as long.
template <bool kZeros>
DI_INLINE bool is_small(const GroupSums& s, int32_t integers) {
    constexpr int kHigh = 1 << 22, kIntegers = 1 << 21;
    if (kZeros && static_cast<uint32_t>(integers) + kIntegers >= 2 * kIntegers) return false;
    const __m512i most = _mm512_set1_epi32(kHigh);
    const __m512i a = _mm512_add_epi32(_mm512_load_si512(s.tiles), most);
    const __m512i b = _mm512_add_epi32(_mm512_load_si512(s.tiles + 256), most);
    return _mm512_test_epi32_mask(_mm512_or_si512(a, b), _mm512_set1_epi32(-2 * kHigh)) == 0;
}

template <int kPlanes, bool kZeros, bool kFits, bool kFirst, class Put>
DI_INLINE void combine_rows_as(GroupSums s, int rows, bool mostly, Put put) {
    const Vec panel[2] = {Vec::load(s.panel), Vec::load(s.panel + 16)};
    const float* before = s.totals;
    for (int r = 0; r < rows; ++r, s.tiles += 16, s.scales += 32, s.integers += 32, before += kCell) {
        int32_t integers = 0;
        if (kZeros) __builtin_memcpy(&integers, s.integers, sizeof integers);
        const Vec scale = Vec::set(*s.scales);
        const bool small = kFits || (kPlanes == 2 && mostly && __builtin_expect(is_small<kZeros>(s, integers), true));
        Vec totals[2];
        for (int h = 0; h < 2; ++h) {
            const int32_t* at = s.tiles + 256 * h;
            const __m512 t = small ? round_int32<kPlanes, kZeros>(s, at, h, integers)
                                   : round_double<kPlanes, kZeros>(s, at, h, integers);
            totals[h] = fma(Vec{t}, panel[h] * scale, kFirst ? Vec::zero() : Vec::load(before + 16 * h));
        }
        put(r, totals[0], totals[1]);
    }
}

// put(r, a, b) for each row: its new totals, 16 and 16 columns.
template <int kPlanes, bool kZeros, class Put>
DI_INLINE void combine_rows(const GroupSums& s, int rows, Fits fits, Put put) {
    const bool always = fits == Fits::Always, mostly = fits == Fits::Mostly;
    if (s.totals) {
        always ? combine_rows_as<kPlanes, kZeros, true, false>(s, rows, mostly, put)
               : combine_rows_as<kPlanes, kZeros, false, false>(s, rows, mostly, put);
    } else {
        always ? combine_rows_as<kPlanes, kZeros, true, true>(s, rows, mostly, put)
               : combine_rows_as<kPlanes, kZeros, false, true>(s, rows, mostly, put);
    }
}

// put() into memory.
struct StoreTotals {
    float* to;  // 32 columns a row

    DI_INLINE void operator()(int r, Vec a, Vec b) const {
        a.store(to + r * kCell);
        b.store(to + r * kCell + 16);
    }
};

}  // namespace
}  // namespace di
