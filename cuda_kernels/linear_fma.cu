// x[M,K] · w[N,K]ᵀ → y[M,N] with fused multiply-adds, for every type on every chip: tiles of 64 x 64, a thread has 4 x
// 4 sums.
#include "epilogue.cuh"

namespace di {
namespace {

constexpr int kTile = 64, kDepth = 16, kPad = 4;

union Tiles {
    struct {
        float x[kDepth][kTile + kPad], w[kDepth][kTile + kPad];
    } in;
    float total[kTile][kTile + 1];
};

// This thread's row of a matrix (negative: zeros), transposed: tile[k][threadIdx.x / 4].
__device__ __forceinline__ void load_tile(float (*tile)[kTile + kPad], const void* data, int64_t stride, int dtype,
                                          int from, int k0) {
    const int row = threadIdx.x / 4, k = threadIdx.x % 4 * 4;
    const Four x = from >= 0 ? load4(data, from * stride + k0 + k, dtype) : Four{};
#pragma unroll
    for (int i = 0; i < 4; ++i) tile[k + i][row] = x.x[i];
}

}  // namespace
}  // namespace di

// grid (ceil(N / 64), ceil(M / 64)), block 256
extern "C" __global__ void __launch_bounds__(256) linear_fma(di::LinearArgs a) {
    using namespace di;
    SHARED(Tiles, shared, 1);
    Tiles& s = *shared;
    const RowSet rows = row_set(a.experts, a.rows, kTile);
    if (rows.count == 0) return;
    const int n0 = blockIdx.x * kTile, row = threadIdx.x / 4;
    const int x_row = row < rows.count ? rows.in(row) : -1;
    const int w_row = n0 + row < a.N ? rows.expert * a.N + n0 + row : -1;
    const int tm = threadIdx.x / 16 * 4, tn = threadIdx.x % 16 * 4;
    float sum[4][4] = {};
    for (int k0 = 0; k0 < a.K; k0 += kDepth) {
        load_tile(s.in.x, a.x.data, a.x.stride, a.x.dtype, x_row, k0);
        load_tile(s.in.w, a.w, a.w_stride, a.w_dtype, w_row, k0);
        __syncthreads();
#pragma unroll
        for (int k = 0; k < kDepth; ++k) {
            float x[4], w[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) x[i] = s.in.x[k][tm + i], w[i] = s.in.w[k][tn + i];
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) sum[i][j] = fmaf(x[i], w[j], sum[i][j]);
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) s.total[tm + i][tn + j] = sum[i][j];
    __syncthreads();
    finish_tile(a.e, rows, n0, min(kTile, a.N - n0), [&](int m, int n) { return s.total[m][n]; });
}
EXPORT_KERNEL(linear_fma)
