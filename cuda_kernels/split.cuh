// An fp32 number as two of 16 bits: what the first rounds off is the second. Products with both, summed in fp32, lose
// little more than fp32 does, so weights in fp16 meet activations in fp32 on tensor cores.
#pragma once
#include "view.cuh"

namespace di {

struct Halves {
    uint4 high, low;  // eight elements each
};

__device__ __forceinline__ uint32_t half_pair(float x, float y) {
    return from_float<f16>(x).u | static_cast<uint32_t>(from_float<f16>(y).u) << 16;
}

// Beyond the largest fp16 number the second part takes over, up to twice that number.
__device__ __forceinline__ float high_part(float x) {
    const float inside = x > 65504.0f ? 65504.0f : x < -65504.0f ? -65504.0f : x;
    return to_float(from_float<f16>(inside));
}

__device__ __forceinline__ Halves split8(const float* x) {
    uint32_t high[4], low[4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const float4 v = reinterpret_cast<const float4*>(x)[i];
        const float h[4] = {high_part(v.x), high_part(v.y), high_part(v.z), high_part(v.w)};
        high[2 * i] = half_pair(h[0], h[1]);
        high[2 * i + 1] = half_pair(h[2], h[3]);
        low[2 * i] = half_pair(v.x - h[0], v.y - h[1]);
        low[2 * i + 1] = half_pair(v.z - h[2], v.w - h[3]);
    }
    return {make_uint4(high[0], high[1], high[2], high[3]), make_uint4(low[0], low[1], low[2], low[3])};
}

}  // namespace di
