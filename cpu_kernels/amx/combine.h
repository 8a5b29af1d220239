// What becomes of a group's exact sums: T = 256 · high + low - zero · Σa, rounded once, times sw · sx, plus the totals.
#pragma once
#include "../avx512/vec.h"
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

template <int kPlanes, bool kZeros, bool kFits, bool kFirst, class Put>
DI_INLINE void combine_rows_as(GroupSums s, int rows, Put put) {
    const Vec panel[2] = {Vec::load(s.panel), Vec::load(s.panel + 16)};
    const float* before = s.totals;
    for (int r = 0; r < rows; ++r, s.tiles += 16, s.scales += 32, s.integers += 32, before += kCell) {
        int32_t integers = 0;
        if (kZeros) __builtin_memcpy(&integers, s.integers, sizeof integers);
        const Vec scale = Vec::set(*s.scales);
        Vec totals[2];
        for (int h = 0; h < 2; ++h) {
            const int32_t* at = s.tiles + 256 * h;
            const __m512 t = kFits ? round_int32<kPlanes, kZeros>(s, at, h, integers)
                                   : round_double<kPlanes, kZeros>(s, at, h, integers);
            totals[h] = fma(Vec{t}, panel[h] * scale, kFirst ? Vec::zero() : Vec::load(before + 16 * h));
        }
        put(r, totals[0], totals[1]);
    }
}

// put(r, a, b) for each row: its new totals, 16 and 16 columns. `fits`: T fits int32.
template <int kPlanes, bool kZeros, class Put>
DI_INLINE void combine_rows(const GroupSums& s, int rows, bool fits, Put put) {
    if (s.totals) {
        fits ? combine_rows_as<kPlanes, kZeros, true, false>(s, rows, put)
             : combine_rows_as<kPlanes, kZeros, false, false>(s, rows, put);
    } else {
        fits ? combine_rows_as<kPlanes, kZeros, true, true>(s, rows, put)
             : combine_rows_as<kPlanes, kZeros, false, true>(s, rows, put);
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
