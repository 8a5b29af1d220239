// Rows of activations whose type is known at run time, four elements at a time.
#pragma once
#include "device.cuh"

namespace di {

__device__ __forceinline__ int count(const Rows& rows) {
    if (!rows.actual) return rows.most;
    const int n = *rows.actual;
    return n < rows.most ? n : rows.most;
}

__device__ __forceinline__ float load_as(const void* data, int64_t at, int dtype) {
    if (dtype == F32) return static_cast<const float*>(data)[at];
    if (dtype == BF16) return to_float(static_cast<const bf16*>(data)[at]);
    return to_float(static_cast<const f16*>(data)[at]);
}

__device__ __forceinline__ void store_as(void* data, int64_t at, int dtype, float x) {
    if (dtype == F32)
        static_cast<float*>(data)[at] = x;
    else if (dtype == BF16)
        static_cast<bf16*>(data)[at] = from_float<bf16>(x);
    else
        static_cast<f16*>(data)[at] = from_float<f16>(x);
}

// What a store to `dtype` and a load would leave of x.
__device__ __forceinline__ float rounded_to(float x, int dtype) {
    if (dtype == F32) return x;
    return dtype == BF16 ? to_float(from_float<bf16>(x)) : to_float(from_float<f16>(x));
}

struct Four {
    float x[4];
};

// `at` is a multiple of four and the data is aligned to four elements.
__device__ __forceinline__ Four load4(const void* data, int64_t at, int dtype) {
    if (dtype == F32) {
        const float4 v = *reinterpret_cast<const float4*>(static_cast<const float*>(data) + at);
        return {{v.x, v.y, v.z, v.w}};
    }
    const uint2 v = *reinterpret_cast<const uint2*>(static_cast<const uint16_t*>(data) + at);
    const uint16_t h[4] = {static_cast<uint16_t>(v.x), static_cast<uint16_t>(v.x >> 16), static_cast<uint16_t>(v.y),
                           static_cast<uint16_t>(v.y >> 16)};
    Four r;
#pragma unroll
    for (int i = 0; i < 4; ++i) r.x[i] = dtype == BF16 ? to_float(bf16{h[i]}) : to_float(f16{h[i]});
    return r;
}

__device__ __forceinline__ void store4(void* data, int64_t at, int dtype, const Four& v) {
    if (dtype == F32) {
        *reinterpret_cast<float4*>(static_cast<float*>(data) + at) = make_float4(v.x[0], v.x[1], v.x[2], v.x[3]);
        return;
    }
    uint32_t h[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) h[i] = dtype == BF16 ? from_float<bf16>(v.x[i]).u : from_float<f16>(v.x[i]).u;
    *reinterpret_cast<uint2*>(static_cast<uint16_t*>(data) + at) = make_uint2(h[0] | h[1] << 16, h[2] | h[3] << 16);
}

__device__ __forceinline__ Four load4(const View& v, int row, int col) {
    return load4(v.data, row * v.stride + col, v.dtype);
}
__device__ __forceinline__ void store4(const View& v, int row, int col, const Four& x) {
    store4(v.data, row * v.stride + col, v.dtype, x);
}
__device__ __forceinline__ float load1(const View& v, int row, int col) {
    return load_as(v.data, row * v.stride + col, v.dtype);
}
__device__ __forceinline__ void store1(const View& v, int row, int col, float x) {
    store_as(v.data, row * v.stride + col, v.dtype, x);
}

}  // namespace di
