// x[M,K] · w[N,K]ᵀ → y[M,N] for few rows: a warp has two columns (in a gated layer one gate and its up), the weight is
// read once, 16 bytes a lane, and x comes from shared memory.
#include "epilogue.cuh"

namespace di {
namespace {

constexpr int kChunk = 1024;  // columns of x in shared memory
constexpr int kWarps = 4;
struct Chunk {
    __align__(16) float k[kChunk];
};

// The first of a warp's two columns; the other is 1 or, gated, 16 further.
__device__ __forceinline__ int column_of(int pair, bool gated) {
    return gated ? (pair >> 4) * 32 + (pair & 15) : 2 * pair;
}

// 16 bytes of a weight's row as numbers.
template <class W>
struct Lane;
template <>
struct Lane<float> {
    static constexpr int kCount = 4;
    __device__ static __forceinline__ void load(const void* row, int k, float (&x)[4]) {
        const float4 v = *reinterpret_cast<const float4*>(static_cast<const float*>(row) + k);
        x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
    }
};
template <class W>
struct Lane {
    static constexpr int kCount = 8;
    __device__ static __forceinline__ void load(const void* row, int k, float (&x)[8]) {
        const uint4 v = *reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(row) + k);
        const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            x[2 * i] = to_float(W{static_cast<uint16_t>(words[i])});
            x[2 * i + 1] = to_float(W{static_cast<uint16_t>(words[i] >> 16)});
        }
    }
};

template <class W, int kRows>
__device__ __forceinline__ void gemv(const LinearArgs& a) {
    constexpr int kCount = Lane<W>::kCount;
    SHARED(Chunk, x, kRows);
    const RowSet rows = row_set(a.experts, a.rows, kRows);
    if (rows.count == 0) return;
    const int lane = threadIdx.x & 31, pair = blockIdx.x * kWarps + (threadIdx.x >> 5);
    const bool gated = is_gated(a.e), valid = 2 * pair < a.N;
    const int n = column_of(valid ? pair : 0, gated), other = n + (gated ? 16 : 1);
    const int64_t first_row = static_cast<int64_t>(rows.expert) * a.N;
    const W* w0 = static_cast<const W*>(a.w) + (first_row + n) * a.w_stride;
    const W* w1 = static_cast<const W*>(a.w) + (first_row + other) * a.w_stride;

    float sum[2][kRows] = {};
    for (int k0 = 0; k0 < a.K; k0 += kChunk) {
        const int width = min(kChunk, a.K - k0);
        __syncthreads();
        for (int i = 4 * threadIdx.x; i < kRows * kChunk; i += 4 * blockDim.x) {
            const int m = i / kChunk, k = i % kChunk;
            const Four v = m < rows.count && k < width ? load4(a.x, rows.in(m), k0 + k) : Four{};
#pragma unroll
            for (int j = 0; j < 4; ++j) x[m].k[k + j] = v.x[j];
        }
        __syncthreads();
        for (int k = lane * kCount; k < width; k += 32 * kCount) {
            float u[kCount], v[kCount];
            Lane<W>::load(w0, k0 + k, u);
            Lane<W>::load(w1, k0 + k, v);
#pragma unroll
            for (int m = 0; m < kRows; ++m)
#pragma unroll
                for (int i = 0; i < kCount; ++i) {
                    sum[0][m] = fmaf(x[m].k[k + i], u[i], sum[0][m]);
                    sum[1][m] = fmaf(x[m].k[k + i], v[i], sum[1][m]);
                }
        }
    }
#pragma unroll
    for (int m = 0; m < kRows; ++m) {
        if (m >= rows.count) break;
        const float first = warp_sum(sum[0][m]), second = warp_sum(sum[1][m]);
        if (!valid || lane != m) continue;
        finish(a.e, rows.out(m), n, first, second);
        if (!gated) finish(a.e, rows.out(m), other, second, 0.0f);
    }
}

}  // namespace
}  // namespace di

// grid (ceil(N / 8), ceil(M / rows)), block 128
#define GEMV(name, W, rows)                                                                            \
    extern "C" __global__ void __launch_bounds__(128) name(di::LinearArgs a) { di::gemv<W, rows>(a); } \
    EXPORT_KERNEL(name)

GEMV(linear_gemv1_f32, float, 1)
GEMV(linear_gemv8_f32, float, 8)
GEMV(linear_gemv1_bf16, bf16, 1)
GEMV(linear_gemv8_bf16, bf16, 8)
GEMV(linear_gemv1_f16, f16, 1)
GEMV(linear_gemv8_f16, f16, 8)
