// Sums and maxima over a block. All threads take part and all get the result.
#pragma once
#include "device.cuh"

namespace di {

constexpr int kMaxWarps = 32;

// `scratch` has kMaxWarps elements in shared memory and may be used again at once.
template <class T, class Op>
__device__ __forceinline__ T block_reduce(T x, T* scratch, Op op) {
#pragma unroll
    for (int step = 16; step; step >>= 1) x = op(x, __shfl_xor_sync(kWarp, x, step));
    const int warps = (blockDim.x + 31) >> 5;
    if (warps == 1) return x;
    if ((threadIdx.x & 31) == 0) scratch[threadIdx.x >> 5] = x;
    __syncthreads();
    T all = scratch[0];
    for (int w = 1; w < warps; ++w) all = op(all, scratch[w]);
    __syncthreads();
    return all;
}

struct Add {
    template <class T>
    __device__ __forceinline__ T operator()(T a, T b) const {
        return a + b;
    }
};
struct Max {
    template <class T>
    __device__ __forceinline__ T operator()(T a, T b) const {
        return a > b ? a : b;
    }
};

}  // namespace di
