// Walking the rows of activations, whichever of fp32 and bf16 they are kept in. Included after the tier's vec.h.
#pragma once
#include "../kernels.h"
#include "inline.h"

namespace di {
namespace {

template <class T>
struct Type {
    using type = T;
};
template <class Tag>
using TypeOf = typename Tag::type;

// f(Type<float>) or f(Type<bf16>).
template <class F>
DI_INLINE void by_type(DType t, F f) {
    if (t == DType::F32) {
        f(Type<float>{});
    } else {
        f(Type<bf16>{});
    }
}

DI_INLINE Vec load16(const float* p) { return Vec::load(p); }
DI_INLINE Vec load16(const bf16* p) { return Vec::load_bf16(p); }
DI_INLINE void store16(float* p, Vec v) { v.store(p); }
DI_INLINE void store16(bf16* p, Vec v) { v.store_bf16(p); }

// One number a row of a band.
struct alignas(64) PerRow {
    float v[kCell];
};

// f(m, n) for the pieces [m, m + n) of rows [m0, m1) that lie in one band: there 32 columns of n rows are contiguous.
template <class F>
DI_INLINE void for_bands(const View& view, int m0, int m1, F f) {
    const int band = view.band();
    for (int m = m0; m < m1;) {
        const int end = m / band * band + band, stop = end < m1 ? end : m1;
        f(m, stop - m);
        m = stop;
    }
}

}  // namespace
}  // namespace di
