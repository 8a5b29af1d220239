// The cells of a quantized KV cache: where a token's codes go, and how a cell becomes integers in bf16.
//
// A line of 64 bytes is 16 dwords, one a column of a half cell, each of consecutive k, so that a tile's pairs come out
// of whole registers with a mask and a shift. In K a column is a token and k counts head columns; in V a column is a
// head column and k counts tokens. No byte holds codes of two tokens: threads that write neighbours never meet.
//   8 bit    K, V  [2 halves][8][16 columns][4 k]
//   4 bit    K     [2 halves][4][16 columns][8 k], the even k in the low half of a byte
//            V     [8][16 columns][4 k], a byte is one token's codes of column j (low) and column 16 + j
#pragma once
#include "../kernels.h"
#include "inline.h"

namespace di {
namespace {

constexpr size_t kCodeLine = 64;

// Field i of a dword holds the code of its number in the mantissa of 2^(23 - position), the float's unit where the
// field lies: fields come out as code + field_bias, exactly, and without a shift for each.
template <int kBits>
constexpr float field_bias(int i) {
    return static_cast<float>(1u << (23 - i * kBits % 16));
}

template <int kBits>
DI_INLINE void load_fields(const uint8_t* line, Vec (&field)[32 / kBits]) {
    const Vec::Words low = Vec::load_words(line), high = low.high();
#pragma GCC unroll 8
    for (int i = 0; i < 32 / kBits; ++i) {
        const int position = i * kBits % 16;
        const uint32_t mask = ((1u << kBits) - 1) << position, exponent = static_cast<uint32_t>(150 - position) << 23;
        field[i] = Vec::field(i * kBits < 16 ? low : high, mask, exponent);
    }
}

// Zero points of 32 tokens plus the biases of the fields that they are subtracted from, by token parity.
DI_INLINE void bias_zeros(const float* zeros, float even, float odd, float* to) {
    alignas(64) float bias[16];
    for (int i = 0; i < 16; i += 2) bias[i] = even, bias[i + 1] = odd;
    (Vec::load(zeros) + Vec::load(bias)).store(to);
    (Vec::load(zeros + 16) + Vec::load(bias)).store(to + 16);
}

// K: a cell of bf16 integers (code - zero point of its token) from a cell of codes.
template <int kBits>
DI_INLINE void expand_k_cell(bf16* to, const uint8_t* cell, const float* zeros, const uint8_t* ahead) {
    constexpr int kFields = 32 / kBits, kBiases = 16 / kBits;
    for (int half = 0; half < 2; ++half) {
        const Vec zero = Vec::load(zeros + 16 * half);
        Vec biased[kBiases];
        for (int i = 0; i < kBiases; ++i) biased[i] = zero + Vec::set(field_bias<kBits>(i));
#pragma GCC unroll 2
        for (int line = 0; line < kBits; ++line, cell += kCodeLine) {
            Vec field[kFields];
            load_fields<kBits>(cell, field);
            if (ahead) __builtin_prefetch(ahead, 0, 2), ahead += kCodeLine;
            for (int i = 0; i < kFields; i += 2, to += kCell) {
                Vec::store_pairs_bf16(to, field[i] - biased[i % kBiases], field[i + 1] - biased[(i + 1) % kBiases]);
            }
        }
    }
}

template <int kBits>
struct KvCodes;

template <>
struct KvCodes<8> {
    static constexpr int kLargest = 255;
    static constexpr size_t kCellBytes = kCellSize;

    // 32 columns of one token.
    static DI_INLINE void store_k(uint8_t* cell, const uint8_t* codes, int token) {
        uint8_t* to = cell + token / 16 * (8 * kCodeLine) + token % 16 * 4;
        for (int i = 0; i < 8; ++i) __builtin_memcpy(to + i * kCodeLine, codes + 4 * i, 4);
    }
    static DI_INLINE void store_v(uint8_t* cell, const uint8_t* codes, int token) {
        uint8_t* to = cell + token / 4 * kCodeLine + token % 4;
        for (int d = 0; d < 16; ++d) to[4 * d] = codes[d];
        for (int d = 0; d < 16; ++d) to[4 * d + 8 * kCodeLine] = codes[16 + d];
    }

    static DI_INLINE void expand_k(bf16* to, const uint8_t* cell, const float* zeros, const uint8_t* ahead) {
        expand_k_cell<8>(to, cell, zeros, ahead);
    }
    static DI_INLINE void expand_v(bf16* to, const uint8_t* cell, const float* zeros, const uint8_t* ahead) {
        alignas(64) float biased[kCell];
        bias_zeros(zeros, field_bias<8>(0), field_bias<8>(1), biased);
#pragma GCC unroll 2
        for (int line = 0; line < 16; ++line, cell += kCodeLine) {
            const float* zero = biased + line % 8 * 4;
            Vec field[4];
            load_fields<8>(cell, field);
            if (ahead) __builtin_prefetch(ahead, 0, 2), ahead += kCodeLine;
            for (int i = 0; i < 4; i += 2, to += kCell) {
                Vec::store_pairs_bf16(to, field[i] - Vec::set(zero[i]), field[i + 1] - Vec::set(zero[i + 1]));
            }
        }
    }
};

template <>
struct KvCodes<4> {
    static constexpr int kLargest = 15;
    static constexpr size_t kCellBytes = kCellSize / 2;

    static DI_INLINE void store_k(uint8_t* cell, const uint8_t* codes, int token) {
        uint8_t* to = cell + token / 16 * (4 * kCodeLine) + token % 16 * 4;
        for (int i = 0; i < 4; ++i, codes += 8) {
            uint8_t packed[4];
            for (int b = 0; b < 4; ++b) packed[b] = static_cast<uint8_t>(codes[2 * b] | codes[2 * b + 1] << 4);
            __builtin_memcpy(to + i * kCodeLine, packed, 4);
        }
    }
    static DI_INLINE void store_v(uint8_t* cell, const uint8_t* codes, int token) {
        uint8_t* to = cell + token / 4 * kCodeLine + token % 4;
        for (int d = 0; d < 16; ++d) to[4 * d] = static_cast<uint8_t>(codes[d] | codes[16 + d] << 4);
    }

    static DI_INLINE void expand_k(bf16* to, const uint8_t* cell, const float* zeros, const uint8_t* ahead) {
        expand_k_cell<4>(to, cell, zeros, ahead);
    }
    // Field 2k + h is token k, half h.
    static DI_INLINE void expand_v(bf16* to, const uint8_t* cell, const float* zeros, const uint8_t* ahead) {
        alignas(64) float biased[2][kCell];
        for (int h = 0; h < 2; ++h) bias_zeros(zeros, field_bias<4>(h), field_bias<4>(2 + h), biased[h]);
        for (int line = 0; line < 8; ++line, cell += kCodeLine, to += 2 * kCell) {
            Vec field[8];
            load_fields<4>(cell, field);
            if (ahead) __builtin_prefetch(ahead, 0, 2), ahead += kCodeLine;
            for (int h = 0; h < 2; ++h) {
                const float* zero = biased[h] + 4 * line;
                for (int k = 0; k < 4; k += 2) {
                    Vec::store_pairs_bf16(to + h * (kCellSize / 2) + k / 2 * kCell,
                                          field[2 * k + h] - Vec::set(zero[k]),
                                          field[2 * k + 2 + h] - Vec::set(zero[k + 1]));
                }
            }
        }
    }
};

}  // namespace
}  // namespace di
