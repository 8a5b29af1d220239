// Integers of the tiers that convert through an array; compilers vectorize it. Included at the end of their vec.h.
#pragma once
#include "inline.h"

namespace di {
namespace {

// 64 whole numbers on their way to bytes.
struct Integers {
    int32_t v[64];

    // x rounded to nearest even; |x| < 2³¹.
    static DI_INLINE Integers rounded(const Vec x[4]) {
        alignas(64) float whole[64];
        for (int i = 0; i < 4; ++i) rint(x[i]).store(whole + 16 * i);
        Integers r;
        for (int i = 0; i < 64; ++i) r.v[i] = static_cast<int32_t>(whole[i]);
        return r;
    }
    // To the sums of 16 lanes.
    DI_INLINE void add_to(int32_t* lanes) const {
        for (int i = 0; i < 16; ++i) lanes[i] += v[i] + v[i + 16] + v[i + 32] + v[i + 48];
    }
    // As bytes, from -128 to 127. `past`: past the caches, where a tier can.
    DI_INLINE void store(int8_t* p, bool) const {
        for (int i = 0; i < 64; ++i) p[i] = static_cast<int8_t>(v[i]);
    }
    // As 256 · high + low, from -32768 to 32639.
    DI_INLINE void store(int8_t* high, int8_t* low, bool) const {
        for (int i = 0; i < 64; ++i) high[i] = static_cast<int8_t>((v[i] + 128) >> 8);
        for (int i = 0; i < 64; ++i) low[i] = static_cast<int8_t>(v[i]);
    }
    // What went past the caches is there for other threads, as soon as they know that it should be.
    static DI_INLINE void settle() {}
};

}  // namespace
}  // namespace di
