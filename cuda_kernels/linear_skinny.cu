// x[M,K] · w[N,K]ᵀ → y[M,N] for up to 16 rows in 16 bits on tensor cores. The weight goes from memory to registers: the
// order of k within 32 is free as long as both operands agree, so a lane takes eight consecutive elements of its row of
// each. Activations in fp32 are split into two.
#include "epilogue.cuh"
#include "split.cuh"
#include "tile.cuh"

namespace di {
namespace {

constexpr int kWarps = 8, kRows = 16, kColumns = 16;

struct Sums {
    float at[kWarps][kRows][kColumns + 1];
};

__device__ __forceinline__ uint4 load8(const uint16_t* row, int k) {
    return row ? *reinterpret_cast<const uint4*>(row + k) : make_uint4(0, 0, 0, 0);
}
__device__ __forceinline__ Halves load8(const float* row, int k) {
    return row ? split8(row + k) : Halves{make_uint4(0, 0, 0, 0), make_uint4(0, 0, 0, 0)};
}

template <class T>
__device__ __forceinline__ void multiply(StraightTile<T>& sum, const uint4& top, const uint4& bottom,
                                         const uint4 (&w)[2]) {
    const uint4 x[2] = {top, bottom};
    sum.add(x, w);
}
template <class T>
__device__ __forceinline__ void multiply(StraightTile<T>& sum, const Halves& top, const Halves& bottom,
                                         const uint4 (&w)[2]) {
    multiply(sum, top.low, bottom.low, w);
    multiply(sum, top.high, bottom.high, w);
}

// A block has 16 columns, in a gated layer 8 gates and their 8 ups; its warps share out K.
template <class T, class X>
__device__ __forceinline__ void linear(const LinearArgs& a) {
    SHARED(Sums, sums, 1);
    const RowSet rows = row_set(a.experts, a.rows, kRows);
    if (rows.count == 0) return;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int g = StraightTile<T>::first_row(lane), t = StraightTile<T>::place(lane);
    const bool gated = is_gated(a.e);
    const int n0 = gated ? blockIdx.x / 2 * 32 + blockIdx.x % 2 * 8 : blockIdx.x * kColumns, next = gated ? 16 : 8;
    const X* x = static_cast<const X*>(a.x.data) + 8 * t;
    const X* top = g < rows.count ? x + rows.in(g) * a.x.stride : nullptr;
    const X* bottom = g + 8 < rows.count ? x + rows.in(g + 8) * a.x.stride : nullptr;
    const uint16_t* w0 =
        static_cast<const uint16_t*>(a.w) + (static_cast<int64_t>(rows.expert) * a.N + n0 + g) * a.w_stride + 8 * t;
    const uint16_t* w1 = w0 + next * a.w_stride;

    StraightTile<T> sum;
#pragma unroll 4
    for (int k = 32 * warp; k < a.K; k += 32 * kWarps) {
        const uint4 w[2] = {load8(w0, k), load8(w1, k)};
        const auto u = load8(top, k), v = load8(bottom, k);
        multiply(sum, u, v, w);
    }
    Tile total;
    sum.total(total, lane);
#pragma unroll
    for (int e = 0; e < 8; ++e)
        sums->at[warp][tile_row(lane, e % 4 / 2)][tile_column(lane, e / 4, e % 4)] = total[e / 4][e % 4];
    __syncthreads();

    const int outputs = gated ? 8 : 16, m = threadIdx.x / outputs, n = threadIdx.x % outputs;
    if (m >= rows.count) return;
    float y = 0, up = 0;
    for (int w = 0; w < kWarps; ++w) {
        y += sums->at[w][m][n];
        if (gated) up += sums->at[w][m][n + 8];
    }
    finish(a.e, rows.out(m), n0 + n, y, up);
}

}  // namespace
}  // namespace di

// grid (N / 16, ceil(M / 16)), block 256
extern "C" __global__ void __launch_bounds__(256, 1) linear_skinny_f16(di::LinearArgs a) {
    di::linear<f16, uint16_t>(a);
}
EXPORT_KERNEL(linear_skinny_f16)
extern "C" __global__ void __launch_bounds__(256, 1) linear_skinny_f16_f32(di::LinearArgs a) {
    di::linear<f16, float>(a);
}
EXPORT_KERNEL(linear_skinny_f16_f32)
#if DI_ARCH >= 800
extern "C" __global__ void __launch_bounds__(256, 1) linear_skinny_bf16(di::LinearArgs a) {
    di::linear<bf16, uint16_t>(a);
}
EXPORT_KERNEL(linear_skinny_bf16)
#endif
