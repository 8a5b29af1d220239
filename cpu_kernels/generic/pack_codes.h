// Quantized weights: rows of codes into panels, and one row back out of them as an embedding.
#pragma once
#include "convert.h"
#include "pack.h"

namespace di {
namespace {

// 32 rows of 64 codes to a cell: dwords of 4 k, transposed a half at a time.
DI_INLINE void place_codes(uint8_t* to, const uint8_t* rows, bool nibbles) {
    for (int h = 0; h < 2; ++h) {
        const auto* in = reinterpret_cast<const Dword*>(rows + h * 16 * kQuantCell);
        if (!nibbles) {
            transpose_16(reinterpret_cast<Dword*>(to + h * 1024), 16, in, 16);
            continue;
        }
        alignas(64) uint32_t lines[16 * 16];
        transpose_16(reinterpret_cast<Dword*>(lines), 16, in, 16);
        auto* out = reinterpret_cast<Dword*>(to + h * 512);
        for (int i = 0; i < 8 * 16; ++i) out[i] = lines[i] | lines[i + 8 * 16] << 4;
    }
}

void pack_codes(const QuantWeight& w, const uint8_t* const* codes, const float* const* scales,
                const int16_t* const* zeros, int p0, int p1) {
    const bool nibbles = w.bits == DType::U4;
    const size_t cell_bytes = nibbles ? 1024 : 2048, scale_size = size_of(w.scale_dtype);
    alignas(64) uint8_t rows[kCell * kQuantCell];
    for (int p = p0; p < p1; ++p) {
        uint8_t* to = w.codes + static_cast<size_t>(p) * w.cells * cell_bytes;
        for (int c = 0; c < w.cells; ++c, to += cell_bytes) {
            const int group = c / w.group_cells(), at = c % w.group_cells() * kQuantCell, begin = group * w.group + at;
            const int group_end = group * w.group + w.group, end = group_end < w.k ? group_end : w.k;
            const int left = end - begin, count = left < 0 ? 0 : left < kQuantCell ? left : kQuantCell;
            for (int n = 0; n < kCell; ++n) {
                uint8_t* row = rows + n * kQuantCell;
                const uint8_t* from = codes[p * kCell + n];
                if (from && count == kQuantCell) {
                    __builtin_memcpy(row, from + begin, kQuantCell);
                } else {
                    __builtin_memset(row, 0, kQuantCell);
                    if (from && count > 0) __builtin_memcpy(row, from + begin, static_cast<size_t>(count));
                }
            }
            place_codes(to, rows, nibbles);
        }
        for (int g = 0; g < w.groups; ++g) {
            const size_t first = (static_cast<size_t>(p) * w.groups + g) * kCell;
            alignas(64) float line[kCell];
            for (int n = 0; n < kCell; ++n) {
                const int row = p * kCell + n;
                line[n] = codes[row] ? scales[row][g] : 0.0f;
                w.zeros[first + n] = codes[row] ? zeros[row][g] : int16_t{0};
            }
            convert(static_cast<char*>(w.scales) + first * scale_size, w.scale_dtype, line, DType::F32, kCell);
        }
    }
}

void embed_quant(const View& y, const QuantWeight& w, float factor, int token, int m) {
    const bool nibbles = w.bits == DType::U4;
    const int p = token / kCell, n = token % kCell, half = n / 16;
    const uint8_t* panel = w.codes + static_cast<size_t>(p) * w.cells * (nibbles ? 1024 : 2048);
    float* row = y.row<float>(m);
    for (int k0 = 0; k0 < y.cols; k0 += kCell, row += y.step()) {
        for (int i = 0; i < kCell; ++i) {
            const int k = k0 + i;
            if (k >= w.k) {
                row[i] = 0.0f;
                continue;
            }
            const int group = k / w.group, in_group = k % w.group, in_cell = in_group % kQuantCell;
            const size_t cell = static_cast<size_t>(group) * w.group_cells() + in_group / kQuantCell;
            const int r = in_cell / 4, d = in_cell % 4;
            int code;
            if (nibbles) {
                code = panel[cell * 1024 + half * 512 + r % 8 * 64 + n % 16 * 4 + d] >> (r < 8 ? 0 : 4) & 15;
            } else {
                code = panel[cell * 2048 + half * 1024 + r * 64 + n % 16 * 4 + d];
            }
            const size_t at = (static_cast<size_t>(p) * w.groups + group) * kCell + n;
            float scale;
            convert(&scale, DType::F32, static_cast<const char*>(w.scales) + at * size_of(w.scale_dtype), w.scale_dtype,
                    1);
            row[i] = static_cast<float>(code - w.zeros[at]) * scale * factor;
        }
    }
}

}  // namespace
}  // namespace di
