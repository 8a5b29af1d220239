// planes[M,P·Kp] · codes[N,Kp]ᵀ → y[M,N] for many rows: tiles of 64 rows of planes (32 tokens with two planes, 64 with
// one) by 64 columns. Planes and codes pass through shared memory, three units of K ahead.
#include "codes.cuh"
#include "epilogue.cuh"

namespace di {
namespace {

constexpr int kWarps = 4, kRows = 64, kColumns = 64, kStages = 4;
constexpr int kTiles = kRows / 16;

template <int kBits>
struct Stage {
    uint4 planes[kRows][4];                     // 64 columns
    uint4 codes[kWarps][kBits == 8 ? 64 : 32];  // a unit a warp
};

// Row of the tile → token and plane: 16 rows of the high plane, then the same tokens' low plane.
template <int kPlanes>
__device__ __forceinline__ int token_of(int row) {
    return kPlanes == 2 ? row / 32 * 16 + row % 16 : row;
}

template <int kBits, int kPlanes>
__device__ __forceinline__ void load_stage(const LinearCodesArgs& a, Stage<kBits>& stage, const RowSet& rows, int n0,
                                           int columns, int unit) {
    const int64_t Kp = static_cast<int64_t>(a.w.G) * a.w.group_padded, units = Kp / 64;
    for (int i = threadIdx.x; i < kRows * 4; i += blockDim.x) {
        const int row = i / 4, m = token_of<kPlanes>(row);
        const bool there = m < rows.count;
        const int64_t plane = kPlanes == 2 && row / 16 % 2 ? Kp : 0;
        const int8_t* from = a.planes + (there ? rows.in(m) : 0) * a.planes_stride + plane + unit * 64LL + i % 4 * 16;
        cp_async16(&stage.planes[row][i % 4], from, there);
    }
    constexpr int kPieces = kBits == 8 ? 64 : 32;
    for (int i = threadIdx.x; i < kWarps * kPieces; i += blockDim.x) {
        const bool there = i / kPieces * 16 < columns;
        const int64_t strip = (rows.expert * a.experts.N + n0) / 16 + (there ? i / kPieces : 0);
        const uint8_t* from =
            static_cast<const uint8_t*>(a.w.codes) + (strip * units + unit) * unit_bytes(kBits) + i % kPieces * 16;
        cp_async16(&stage.codes[i / kPieces][i % kPieces], from, there);
    }
}

template <int kPlanes>
using TotalsOf = float[kTiles / kPlanes][2][4];

// Adds the finished group's sums to the totals and clears them.
template <int kPlanes>
__device__ __forceinline__ void close_group(const LinearCodesArgs& a, int (&sum)[kTiles][2][4],
                                            TotalsOf<kPlanes>& total, const RowSet& rows, int n0, int columns,
                                            int group) {
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int c = 0; c < 2; ++c) {
            const int n = 8 * half + 2 * t + c;
            if (n >= columns) continue;
            const int64_t at = static_cast<int64_t>(group) * a.w.N + rows.expert * a.experts.N + n0 + n;
            const float scale = load_as(a.w.scales, at, a.w.scale_dtype);
            const int zero = a.w.zeros[at];
#pragma unroll
            for (int tile = 0; tile < kTiles / kPlanes; ++tile)
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                    const int m = 16 * tile + g + 8 * r, i = 2 * r + c;
                    if (m >= rows.count) continue;
                    const float* grid = a.grid + rows.in(m) * a.grid_stride;
                    const int high = sum[kPlanes * tile][half][i];
                    const int64_t exact = kPlanes == 2 ? 256LL * high + sum[kPlanes * tile + 1][half][i] : high;
                    total[tile][half][i] = add_group(total[tile][half][i], exact, zero,
                                                     __float_as_int(grid[a.w.G + group]), scale * grid[group]);
                }
        }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
            for (int i = 0; i < 4; ++i) sum[tile][half][i] = 0;
}

template <int kBits>
union Shared {
    Stage<kBits> stage[kStages];
    float total[kRows][kColumns + 1];
};

template <int kBits, int kPlanes>
__device__ __forceinline__ void linear_many(const LinearCodesArgs& a) {
    SHARED(Shared<kBits>, shared, 1);
    const RowSet rows = row_set(a.experts, a.rows, kRows / kPlanes);
    if (rows.count == 0) return;
    const int n0 = blockIdx.x * kColumns, columns = min(kColumns, (a.experts.chosen ? a.experts.N : a.w.N) - n0);
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    const int units_in_group = a.w.group_padded >> 6, units = a.w.G * units_in_group;

    int sum[kTiles][2][4] = {};
    TotalsOf<kPlanes> total = {};
    for (int u = 0; u < kStages - 1; ++u) {
        if (u < units) load_stage<kBits, kPlanes>(a, shared->stage[u], rows, n0, columns, u);
        cp_async_commit();
    }
    for (int u = 0; u < units; ++u) {
        cp_async_wait<kStages - 2>();
        __syncthreads();
        const int next = u + kStages - 1;
        if (next < units) load_stage<kBits, kPlanes>(a, shared->stage[next % kStages], rows, n0, columns, next);
        cp_async_commit();
        const Stage<kBits>& stage = shared->stage[u % kStages];
        const CodeUnit unit = load_unit<kBits>(reinterpret_cast<const uint8_t*>(stage.codes[warp]), lane);
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile)
            multiply_unit(sum[tile], stage.planes[16 * tile + g][t], stage.planes[16 * tile + g + 8][t], unit);
        if ((u + 1) % units_in_group == 0)
            close_group<kPlanes>(a, sum, total, rows, n0 + 16 * warp, columns - 16 * warp, u / units_in_group);
    }
    cp_async_wait<0>();
    __syncthreads();
#pragma unroll
    for (int tile = 0; tile < kTiles / kPlanes; ++tile)
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
            for (int i = 0; i < 4; ++i)
                shared->total[16 * tile + g + i / 2 * 8][16 * warp + 8 * half + 2 * t + i % 2] = total[tile][half][i];
    __syncthreads();
    finish_tile(a.e, rows, n0, columns, [&](int m, int n) { return shared->total[m][n]; });
}

}  // namespace
}  // namespace di

// grid (ceil(N / 64), ceil(M / rows)); rows are 32 with two planes and 64 with one; block 128
#define LINEAR_MANY(name, bits, planes)                                             \
    extern "C" __global__ void __launch_bounds__(128) name(di::LinearCodesArgs a) { \
        di::linear_many<bits, planes>(a);                                           \
    }                                                                               \
    EXPORT_KERNEL(name)
LINEAR_MANY(linear_w8_many2, 8, 2)
LINEAR_MANY(linear_w8_many1, 8, 1)
LINEAR_MANY(linear_w4_many2, 4, 2)
LINEAR_MANY(linear_w4_many1, 4, 1)
