// Elementary functions as docs/arithmetic.md defines them: the bits of the CPU's.
#pragma once
#include "device.cuh"

namespace di {

// Range reduction and polynomial of Cephes expf (S. L. Moshier).
__device__ __forceinline__ float exp_spec(float x) {
    if (x < -87.0f) return 0.0f;
    const float capped = x > 88.0f ? 88.0f : x;  // a NaN stays one
    const float n = rintf(capped * 1.44269504088896341f);
    float r = fmaf(n, -0.693359375f, capped);
    r = fmaf(n, 2.12194440e-4f, r);
    float p = 1.9875691500e-4f;
    p = fmaf(p, r, 1.3981999507e-3f);
    p = fmaf(p, r, 8.3334519073e-3f);
    p = fmaf(p, r, 4.1665795894e-2f);
    p = fmaf(p, r, 1.6666665459e-1f);
    p = fmaf(p, r, 5.0000001201e-1f);
    // n is at most 127; a NaN's integer is anything, and the product a NaN.
    const float power = __int_as_float((static_cast<int>(n == n ? n : 0.0f) + 127) << 23);
    return fmaf(p, r * r, r + 1.0f) * power;
}

__device__ __forceinline__ float sigmoid_times(float x, float exponent) { return x / (1.0f + exp_spec(exponent)); }
__device__ __forceinline__ float silu(float x) { return sigmoid_times(x, -x); }
__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + exp_spec(-x)); }
__device__ __forceinline__ float tanh_spec(float x) { return 1.0f - 2.0f / (1.0f + exp_spec(2.0f * x)); }

__device__ __forceinline__ float gelu_tanh(float x) {
    const float u = 0.7978845608f * fmaf(0.044715f * x * x, x, x);
    return sigmoid_times(x, -2.0f * u);
}

// Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26.
__device__ __forceinline__ float erf_spec(float x) {
    const float a = fabsf(x);
    const float t = 1.0f / fmaf(0.3275911f, a, 1.0f);
    float p = 1.061405429f;
    p = fmaf(p, t, -1.453152027f);
    p = fmaf(p, t, 1.421413741f);
    p = fmaf(p, t, -0.284496736f);
    p = fmaf(p, t, 0.254829592f);
    const float y = 1.0f - p * t * exp_spec(-(a * a));
    return x < 0.0f ? -y : y;
}

__device__ __forceinline__ float gelu_erf(float x) { return 0.5f * x * (1.0f + erf_spec(x / 1.41421356237f)); }

// di_act without its _MUL bit.
__device__ __forceinline__ float activate(float x, int act) {
    switch (act & 15) {
        case 1:
            return silu(x);
        case 2:
            return gelu_tanh(x);
        case 3:
            return gelu_erf(x);
        default:
            return x;
    }
}

}  // namespace di
