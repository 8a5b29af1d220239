// How weights are laid out for the kernels: pure functions from source rows to the bytes that are uploaded.
#pragma once
#include <cstddef>
#include <cstdint>

#include "args.h"

namespace di {

inline int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }
size_t size_of(int dtype);  // bytes of an element; 1 for 8 and 4 bit

// Row of k elements in groups of `group`, each padded with zeros to `group_padded`; null: zeros. Rounds to nearest
// even.
void pack_row(const void* source, int source_dtype, int k, int group, int group_padded, void* target, int target_dtype);

// The grid of a quantized weight.
struct CodeShape {
    int k, group, groups;
    int group_padded;  // a multiple of 64
    int bits;          // 8 or 4
    int scale_dtype;

    int k_padded() const { return groups * group_padded; }
    // Codes of `rows` rows, a multiple of 16.
    size_t code_bytes(int64_t rows) const { return static_cast<size_t>(rows * k_padded() * bits / 8); }
};

// Whether no finite number of a row w[k] becomes infinite in fp16.
bool fits_f16(const void* row, int dtype, int k);

// A row w[k] to codes, one a byte, with a scale and a zero point for each group: docs/arithmetic.md, "Quantized
// products". False where the row, or a scale in its type, is not finite.
bool instant_quant(const void* row, int dtype, const CodeShape& shape, uint8_t* codes, float* scales, int16_t* zeros);

// Codes of rows [0, rows), one a byte and null for zeros, in the order of codes.cuh.
void pack_codes(const CodeShape& shape, int rows, const uint8_t* const* codes, uint8_t* target);

// Scales of rows [0, rows) as [groups][rows] in their type, zero points likewise; a row whose codes are null gets
// zeros.
void pack_grid(const CodeShape& shape, int rows, const uint8_t* const* codes, const float* const* scales,
               const int16_t* const* zeros, void* target_scales, int16_t* target_zeros);

}  // namespace di
