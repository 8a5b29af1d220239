// InstantQuant: a row of a weight to integers, with a scale and a zero point for each group of K.
#pragma once
#include "convert.h"

namespace di {
namespace {

// A stretch of a group as fp32, zeros after its end: zero is in every range, so that they count for nothing.
struct Stretch {
    static constexpr int kSize = 256;
    alignas(64) float x[kSize];

    Stretch(const void* row, DType type, int k, int count) {
        __builtin_memset(x, 0, sizeof x);
        const char* from = static_cast<const char*>(row) + static_cast<size_t>(k) * size_of(type);
        convert(x, DType::F32, from, type, static_cast<size_t>(count));
    }
};

struct WeightGrid {
    float scale, zero;
    bool finite;
};

// As the weight keeps it. A range of nothing has the scale 1.
DI_INLINE float round_scale(float scale, DType type) {
    if (type == DType::F32) return scale;
    uint16_t narrow[2];
    convert(narrow, type, &scale, DType::F32, 1);
    if (narrow[0] == 0) narrow[0] = type == DType::F16 ? 0x0400 : 0x0080;
    convert(&scale, DType::F32, narrow, type, 1);
    return scale;
}

DI_INLINE WeightGrid weight_grid(float low, float high, float range, DType scale_type) {
    constexpr float kSmallest = 0x1p-126f;
    const float step = (high - low) / range;
    const float scale = round_scale(high == low ? 1.0f : step < kSmallest ? kSmallest : step, scale_type);
    const Vec zero = min(Vec::set(range), rint(Vec::set(-low / scale)));
    return {scale, zero.lane(0), scale - scale == 0.0f};
}

template <class F>
DI_INLINE void for_stretches(const void* row, DType type, int begin, int end, F f) {
    for (int k = begin; k < end; k += Stretch::kSize) {
        const int count = end - k < Stretch::kSize ? end - k : Stretch::kSize;
        f(Stretch(row, type, k, count), k, count);
    }
}

bool instant_quant(const void* row, DType type, const QuantWeight& w, uint8_t* codes, float* scales, int16_t* zeros) {
    const float range = w.bits == DType::U4 ? 15.0f : 255.0f;
    for (int g = 0; g < w.groups; ++g) {
        const int begin = g * w.group, end = begin + w.group < w.k ? begin + w.group : w.k;
        Vec low = Vec::zero(), high = Vec::zero(), bad = Vec::zero();
        for_stretches(row, type, begin, end, [&](const Stretch& s, int, int) {
            for (int i = 0; i < Stretch::kSize; i += 16) {
                const Vec x = Vec::load(s.x + i);
                low = min(x, low);
                high = max(x, high);
                bad = fma(x, Vec::zero(), bad);  // NaN where x is not finite
            }
        });
        const WeightGrid grid = weight_grid(-(-low).reduce_max(), high.reduce_max(), range, w.scale_dtype);
        if (is_nan(bad).any() || !grid.finite) return false;
        scales[g] = grid.scale;
        zeros[g] = static_cast<int16_t>(grid.zero);
        for_stretches(row, type, begin, end, [&](Stretch s, int k, int count) {
            for (int i = 0; i < Stretch::kSize; i += 16) {
                const Vec q = rint(Vec::load(s.x + i) / Vec::set(grid.scale)) + Vec::set(grid.zero);
                min(Vec::set(range), max(q, Vec::zero())).store(s.x + i);
            }
            uint8_t to[Stretch::kSize];
            for (int i = 0; i < Stretch::kSize; ++i) to[i] = static_cast<uint8_t>(static_cast<int32_t>(s.x[i]));
            __builtin_memcpy(codes + k, to, static_cast<size_t>(count));
        });
    }
    return true;
}

}  // namespace
}  // namespace di
