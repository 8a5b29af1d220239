// Codes of 4 bits to tiles of signed bytes.
#pragma once
#include "../kernels.h"
#include "tile.h"

namespace di {
namespace {

// The zero points of a group, one a byte, as the bytes of a tile's row lie: [n][4 k].
struct ZeroBytes {
    __m512i half[2];

    explicit ZeroBytes(const int16_t* zeros) {
        const __m512i spread = _mm512_broadcast_i32x4(_mm_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c));
        for (int h = 0; h < 2; ++h) {
            const auto* at = reinterpret_cast<const __m256i*>(zeros + 16 * h);
            half[h] = _mm512_shuffle_epi8(_mm512_cvtepi16_epi32(_mm256_loadu_si256(at)), spread);
        }
    }
};

DI_INLINE const int16_t* zeros_of(const QuantWeight& w, int p, int group) {
    return w.zeros + (static_cast<size_t>(p) * w.groups + group) * kCell;
}

// A cell of 64 k and 32 n: (q - zero) as two tiles.
DI_INLINE void unpack_cell(const uint8_t* codes, const ZeroBytes& zeros, uint8_t* to) {
    const __m512i low = _mm512_set1_epi8(15);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
        const __m512i q = _mm512_loadu_si512(codes + i * 64), zero = zeros.half[i / 8];
        uint8_t* at = to + i / 8 * kTileBytes + i % 8 * 64;
        _mm512_store_si512(at, _mm512_sub_epi8(_mm512_and_si512(q, low), zero));
        _mm512_store_si512(at + 512, _mm512_sub_epi8(_mm512_and_si512(_mm512_srli_epi16(q, 4), low), zero));
    }
}

}  // namespace
}  // namespace di
