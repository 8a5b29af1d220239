// x[M,K] · w[N,K]ᵀ → y[M,N] in 16 bits on tensor cores. Both operands pass through shared memory by asynchronous
// copies, kStages - 1 slices of K ahead; warps multiply tiles of 16 x 16. Activations in fp32 are split into two
// numbers of 16 bits on their way.
#include "epilogue.cuh"
#include "split.cuh"
#include "tile.cuh"

namespace di {
namespace {

constexpr int kDepth = 32, kStages = 3;
constexpr int kRowBytes = 2 * kDepth + 16;  // padded, so that eight rows of a matrix lie in different banks

// A tile of kM x kN, and how its warps share it; x comes in kParts.
template <int kM_, int kN_, int kWarpsM_, int kWarpsN_, int kParts_ = 1>
struct Shape {
    static constexpr int kM = kM_, kN = kN_, kWarpsM = kWarpsM_, kWarpsN = kWarpsN_, kParts = kParts_;
    static constexpr int kThreads = 32 * kWarpsM * kWarpsN;
    static constexpr int kTilesM = kM / kWarpsM / 16, kTilesN = kN / kWarpsN / 16;
    static constexpr int kStageBytes = (kParts * kM + kN) * kRowBytes;
    static constexpr int kTotalStride = kN + 4;
};

// 16 bytes at row `row`, byte column `c` of a slice.
__device__ __forceinline__ unsigned char* slice_at(unsigned char* slice, int row, int c) {
    return slice + row * kRowBytes + c;
}

// Rows row_of(0) … row_of(count - 1) of a matrix, columns [k0, k0 + kDepth); zeros where the row is negative.
template <class T, class RowOf>
__device__ __forceinline__ void load_slice(unsigned char* slice, const T* data, int64_t stride, int count, int k0,
                                           RowOf row_of) {
    constexpr int kPieces = kDepth / 8;
    for (int i = threadIdx.x; i < count * kPieces; i += blockDim.x) {
        const int row = i / kPieces, piece = i % kPieces;
        const int from = row_of(row);
        cp_async16(slice_at(slice, row, 16 * piece), data + max(from, 0) * stride + k0 + 8 * piece, from >= 0);
    }
}

// The same of fp32, in two parts of `count` rows. These stores are seen when the others' copies are.
template <class RowOf>
__device__ __forceinline__ void load_slice(unsigned char* slice, const float* data, int64_t stride, int count, int k0,
                                           RowOf row_of) {
    constexpr int kPieces = kDepth / 8;
    for (int i = threadIdx.x; i < count * kPieces; i += blockDim.x) {
        const int row = i / kPieces, piece = i % kPieces, from = row_of(row);
        const uint4 zero = make_uint4(0, 0, 0, 0);
        const Halves x = from >= 0 ? split8(data + from * stride + k0 + 8 * piece) : Halves{zero, zero};
        *reinterpret_cast<uint4*>(slice_at(slice, row, 16 * piece)) = x.high;
        *reinterpret_cast<uint4*>(slice_at(slice, count + row, 16 * piece)) = x.low;
    }
}

template <class T, class S>
__device__ __forceinline__ void multiply_slice(Tile (&sum)[S::kTilesM][S::kTilesN], unsigned char* stage, int warp_m,
                                               int warp_n, int lane) {
    unsigned char* x = slice_at(stage, warp_m * S::kTilesM * 16, 0);
    unsigned char* w = slice_at(stage, S::kParts * S::kM + warp_n * S::kTilesN * 16, 0);
#pragma unroll
    for (int step = 0; step < S::kParts * kDepth / 16; ++step) {
        const int k = step % (kDepth / 16) * 32, part = step / (kDepth / 16) * S::kM;
        uint32_t a[S::kTilesM][kOperand];
#pragma unroll
        for (int i = 0; i < S::kTilesM; ++i) load_rows(a[i], slice_at(x, part + 16 * i, k), kRowBytes, lane);
#pragma unroll
        for (int j = 0; j < S::kTilesN; ++j) {
            uint32_t b[kOperand];
            load_columns(b, slice_at(w, 16 * j, k), kRowBytes, lane);
#pragma unroll
            for (int i = 0; i < S::kTilesM; ++i) mma_tile(sum[i][j], a[i], b, T{});
        }
    }
}

template <class T, class X, class S>
__device__ __forceinline__ void linear(const LinearArgs& a) {
    SHARED_DYNAMIC(unsigned char, shared);
    const RowSet rows = row_set(a.experts, a.rows, S::kM);
    if (rows.count == 0) return;
    const int n0 = blockIdx.x * S::kN;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warp_m = warp / S::kWarpsN, warp_n = warp % S::kWarpsN;
    const X* x = static_cast<const X*>(a.x.data);
    const T* w = static_cast<const T*>(a.w);
    const auto load = [&](int slice) {
        unsigned char* stage = shared + slice % kStages * S::kStageBytes;
        load_slice(stage, x, a.x.stride, S::kM, slice * kDepth,
                   [&](int i) { return i < rows.count ? rows.in(i) : -1; });
        load_slice(slice_at(stage, S::kParts * S::kM, 0), w, a.w_stride, S::kN, slice * kDepth,
                   [&](int i) { return n0 + i < a.N ? rows.expert * a.N + n0 + i : -1; });
    };

    Tile sum[S::kTilesM][S::kTilesN] = {};
    const int slices = a.K / kDepth;
    for (int s = 0; s < kStages - 1; ++s) {
        if (s < slices) load(s);
        cp_async_commit();
    }
    for (int s = 0; s < slices; ++s) {
        cp_async_wait<kStages - 2>();
        __syncthreads();
        if (s + kStages - 1 < slices) load(s + kStages - 1);
        cp_async_commit();
        multiply_slice<T, S>(sum, shared + s % kStages * S::kStageBytes, warp_m, warp_n, lane);
    }
    cp_async_wait<0>();
    __syncthreads();

    float* total = reinterpret_cast<float*>(shared);
#pragma unroll
    for (int i = 0; i < S::kTilesM; ++i)
#pragma unroll
        for (int j = 0; j < S::kTilesN; ++j)
#pragma unroll
            for (int e = 0; e < 8; ++e) {
                const int m = (warp_m * S::kTilesM + i) * 16 + tile_row(lane, e % 4 / 2);
                const int n = (warp_n * S::kTilesN + j) * 16 + tile_column(lane, e / 4, e % 4);
                total[m * S::kTotalStride + n] = sum[i][j][e / 4][e % 4];
            }
    __syncthreads();
    finish_tile(a.e, rows, n0, min(S::kN, a.N - n0), [&](int m, int n) { return total[m * S::kTotalStride + n]; });
}

using Small = Shape<64, 64, 2, 2>;
using Large = Shape<128, 128, 2, 4>;
using Split = Shape<64, 64, 2, 2, 2>;

}  // namespace
}  // namespace di

// grid (ceil(N / columns), ceil(M / rows)); 64 x 64 with a block of 128, 128 x 128 with 256
#define LINEAR(name, T, X, shape)                                                                 \
    extern "C" __global__ void __launch_bounds__(di::shape::kThreads, 1) name(di::LinearArgs a) { \
        di::linear<T, X, di::shape>(a);                                                           \
    }                                                                                             \
    EXPORT_KERNEL(name)
LINEAR(linear_mma64_f16, f16, f16, Small)
LINEAR(linear_mma128_f16, f16, f16, Large)
LINEAR(linear_mma64_f16_f32, f16, float, Split)
#if DI_ARCH >= 800
LINEAR(linear_mma64_bf16, bf16, bf16, Small)
LINEAR(linear_mma128_bf16, bf16, bf16, Large)
#endif
