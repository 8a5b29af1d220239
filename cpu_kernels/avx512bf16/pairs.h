// Products of bf16 in pairs. VDPBF16PS adds two products to each fp32 sum, that of the high halves first, as two fused
// multiply-adds that flush denormals (Intel SDM volume 2C). So it takes two links of one chain of docs/arithmetic.md,
// where a word holds columns k (high) and k + 2 (low): neighbours in the chain of even or of odd columns.
#pragma once
#include "../generic/inline.h"
#include "../layout.h"

namespace di {
namespace {

// Columns 4i and 4i + 2 of 16 outputs, and columns 4i + 1 and 4i + 3.
struct Pairs {
    __m512i even, odd;

    // From two lines of a panel.
    static DI_INLINE Pairs load(const bf16* lines) {
        constexpr __mmask32 kHigh = 0xaaaaaaaau;
        const __m512i a = _mm512_loadu_si512(lines), b = _mm512_loadu_si512(lines + 32);
        return {_mm512_mask_blend_epi16(kHigh, b, _mm512_slli_epi32(a, 16)),
                _mm512_mask_blend_epi16(kHigh, _mm512_srli_epi32(b, 16), a)};
    }
};

// Rows in pairs: of four columns 0 1 2 3 the order is 2 0 3 1, a word for each chain.
constexpr int kPairOrder = 2 | 0 << 2 | 3 << 4 | 1 << 6;
DI_INLINE __m256i paired(__m256i x) {
    return _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(x, kPairOrder), kPairOrder);
}
DI_INLINE __m512i paired(__m512i x) {
    return _mm512_shufflehi_epi16(_mm512_shufflelo_epi16(x, kPairOrder), kPairOrder);
}

DI_INLINE __m512i broadcast_pair(const bf16* x) {
    int32_t word;
    __builtin_memcpy(&word, x, sizeof word);
    return _mm512_set1_epi32(word);
}

DI_INLINE Vec add_pair(Vec sum, __m512i x, __m512i w) {
    return {_mm512_dpbf16_ps(sum.v, reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(w))};
}

constexpr int kPairRows = 4;  // 16 chains, 8 sums, four pairs of weights and two of x in 32 registers
constexpr int kCellSteps = kCell / 4;

// acc[kRows][2] += x[kRows, 32] · cell; rows of x are in pairs, kStride elements apart. `meanwhile(i)` is called in
// each of the kCellSteps steps of four columns.
template <int kRows, int kStride, class F>
DI_INLINE void add_cell(const bf16* x, const bf16* cell, Vec (&acc)[kRows][2], F meanwhile) {
    Vec te[kRows][2], to[kRows][2];
    for (int i = 0; i < 2 * kRows; ++i) te[i / 2][i % 2] = to[i / 2][i % 2] = Vec::zero();
#pragma GCC unroll 8
    for (int i = 0; i < kCellSteps; ++i) {
        const Pairs a = Pairs::load(cell + 64 * i), b = Pairs::load(cell + kCellSize / 2 + 64 * i);
        meanwhile(i);
        for (int m = 0; m < kRows; ++m) {
            const __m512i even = broadcast_pair(x + m * kStride + 4 * i);
            const __m512i odd = broadcast_pair(x + m * kStride + 4 * i + 2);
            te[m][0] = add_pair(te[m][0], even, a.even);
            te[m][1] = add_pair(te[m][1], even, b.even);
            to[m][0] = add_pair(to[m][0], odd, a.odd);
            to[m][1] = add_pair(to[m][1], odd, b.odd);
        }
    }
    for (int i = 0; i < 2 * kRows; ++i) acc[i / 2][i % 2] = acc[i / 2][i % 2] + (te[i / 2][i % 2] + to[i / 2][i % 2]);
}

// f(Count<n>) for n = min(count, kRows).
template <int n>
struct Count {
    static constexpr int value = n;
};
template <class F, int kRows = kPairRows>
DI_INLINE void with_rows(int count, F f, Count<kRows> = {}) {
    if (count >= kRows) return f(Count<kRows>{});
    if constexpr (kRows > 1) with_rows(count, f, Count<kRows - 1>{});
}

// Multiplications with numbers as products have them, ± 0.5 to 2 with all their bits.
double matrix_peak_pairs(int64_t rounds) {
    constexpr int kChains = 16;
    __m512i x = _mm512_set1_epi32(0x3f5abf2f), w = _mm512_set1_epi32(0x3fb3bf95);
    Vec sums[kChains];
    for (Vec& sum : sums) sum = Vec::zero();
    for (int64_t i = 0; i < rounds; ++i) {
        for (Vec& sum : sums) sum = add_pair(sum, x, w);
        asm volatile("" : "+v"(x), "+v"(w));
    }
    for (Vec& sum : sums) asm volatile("" : : "v"(sum.v));
    return static_cast<double>(rounds) * kChains * (2.0 * 32);
}

}  // namespace
}  // namespace di
