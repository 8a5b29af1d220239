#include "pack.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

namespace di {

namespace {

constexpr float kSmallestNormal = 0x1p-126f;
constexpr float kToInteger = 12582912.0f;  // 1.5 * 2^23: adding and subtracting it rounds |x| < 2^22 to nearest even

float rint_small(float x) { return (x + kToInteger) - kToInteger; }

template <class To, class From>
To bits_of(From x) {
    To to;
    static_assert(sizeof to == sizeof x);
    std::memcpy(&to, &x, sizeof to);
    return to;
}

float flushed(float x) { return std::fabs(x) < kSmallestNormal ? std::copysign(0.0f, x) : x; }

uint16_t to_bf16(float x) {
    const uint32_t bits = bits_of<uint32_t>(flushed(x));
    if (x != x) return static_cast<uint16_t>(bits >> 16 | 0x40);
    return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

uint16_t to_f16(float x) { return bits_of<uint16_t>(static_cast<_Float16>(x)); }

float load(const void* row, int dtype, int at) {
    if (dtype == F32) return static_cast<const float*>(row)[at];
    const uint16_t bits = static_cast<const uint16_t*>(row)[at];
    return dtype == BF16 ? bits_of<float>(uint32_t{bits} << 16) : static_cast<float>(bits_of<_Float16>(bits));
}

void store(void* row, int dtype, int at, float x) {
    if (dtype == F32)
        static_cast<float*>(row)[at] = x;
    else
        static_cast<uint16_t*>(row)[at] = dtype == BF16 ? to_bf16(x) : to_f16(x);
}

// As the weight keeps it; what becomes zero is the type's smallest normal number.
float round_scale(float scale, int dtype) {
    if (dtype == F32) return scale;
    uint16_t narrow;
    store(&narrow, dtype, 0, scale);
    if (narrow == 0) narrow = dtype == F16 ? 0x0400 : 0x0080;
    return load(&narrow, dtype, 0);
}

}  // namespace

size_t size_of(int dtype) { return dtype == F32 || dtype == I32 ? 4 : dtype == F16 || dtype == BF16 ? 2 : 1; }

void pack_row(const void* source, int source_dtype, int k, int group, int group_padded, void* target,
              int target_dtype) {
    const size_t element = size_of(target_dtype);
    auto* to = static_cast<unsigned char*>(target);
    std::memset(to, 0, static_cast<size_t>(k / group) * static_cast<size_t>(group_padded) * element);
    if (!source) return;
    for (int first = 0; first < k; first += group, to += static_cast<size_t>(group_padded) * element) {
        const auto* from =
            static_cast<const unsigned char*>(source) + static_cast<size_t>(first) * size_of(source_dtype);
        if (source_dtype == target_dtype)
            std::memcpy(to, from, static_cast<size_t>(group) * element);
        else
            for (int i = 0; i < group; ++i) store(to, target_dtype, i, load(from, source_dtype, i));
    }
}

bool fits_f16(const void* row, int dtype, int k) {
    constexpr float kFirstTooLarge = 65520;  // rounds to infinity
    bool fits = true;
    for (int i = 0; i < k && dtype != F16; ++i) {
        const float size = std::fabs(load(row, dtype, i));
        fits &= !(size >= kFirstTooLarge && size <= std::numeric_limits<float>::max());
    }
    return fits;
}

bool instant_quant(const void* row, int dtype, const CodeShape& shape, uint8_t* codes, float* scales, int16_t* zeros) {
    const float range = shape.bits == 4 ? 15.0f : 255.0f;
    std::vector<float> w(static_cast<size_t>(shape.group));
    for (int g = 0; g < shape.groups; ++g) {
        const int begin = g * shape.group, count = std::min(shape.group, shape.k - begin);
        float low = 0, high = 0, bad = 0;
        for (int i = 0; i < count; ++i) {
            const float x = flushed(load(row, dtype, begin + i));
            w[static_cast<size_t>(i)] = x;
            low = std::min(low, x);
            high = std::max(high, x);
            bad += x * 0.0f;  // NaN where x is not finite
        }
        const float step = (high - low) / range;
        const float scale = high == low ? 1.0f : round_scale(std::max(step, kSmallestNormal), shape.scale_dtype);
        if (bad != 0 || scale - scale != 0) return false;
        const float zero = std::min(range, rint_small(-low / scale));
        scales[g] = scale;
        zeros[g] = static_cast<int16_t>(zero);
        for (int i = 0; i < count; ++i) {
            const float q = rint_small(w[static_cast<size_t>(i)] / scale) + zero;
            codes[begin + i] = static_cast<uint8_t>(std::min(range, std::max(q, 0.0f)));
        }
    }
    return true;
}

void pack_codes(const CodeShape& shape, int rows, const uint8_t* const* codes, uint8_t* target) {
    std::memset(target, 0, shape.code_bytes(rows));
    const size_t unit_bytes = shape.bits == 8 ? 1024 : 512;
    const size_t units = static_cast<size_t>(shape.k_padded() / 64);  // along K
    for (int n = 0; n < rows; ++n) {
        if (!codes[n]) continue;
        const size_t half = static_cast<size_t>(n >> 3 & 1);
        uint8_t* row = target + static_cast<size_t>(n >> 4) * units * unit_bytes + static_cast<size_t>(n & 7) * 64;
        for (int from = 0; from < shape.k; ++from) {
            const auto k = static_cast<size_t>(from / shape.group * shape.group_padded + from % shape.group);
            uint8_t* lane = row + k / 64 * unit_bytes + k % 64 / 16 * 16;
            if (shape.bits == 8)
                lane[half * 512 + k % 16] = codes[n][from];
            else
                lane[(2 * half + k % 16 / 8) * 4 + k % 4] |= static_cast<uint8_t>((codes[n][from] & 15) << (k & 4));
        }
    }
}

void pack_grid(const CodeShape& shape, int rows, const uint8_t* const* codes, const float* const* scales,
               const int16_t* const* zeros, void* target_scales, int16_t* target_zeros) {
    for (int g = 0; g < shape.groups; ++g)
        for (int n = 0; n < rows; ++n) {
            const int at = g * rows + n;
            store(target_scales, shape.scale_dtype, at, codes[n] ? scales[n][g] : 0.0f);
            target_zeros[at] = codes[n] ? zeros[n][g] : int16_t{0};
        }
}

}  // namespace di
