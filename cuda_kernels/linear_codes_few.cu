// planes[M,P·Kp] · codes[N,Kp]ᵀ → y[M,N] for few rows. A warp multiplies 16 columns; the two planes of 8 rows, or one
// plane of 16, are the 16 rows of its products. The warps of a block share out K: by groups, or the units of each
// group.
#include "codes.cuh"
#include "epilogue.cuh"

namespace di {
namespace {

constexpr int kWarps = 8, kRows = 16, kColumns = 16;

struct Sums {
    int at[kWarps][kRows][kColumns];
};
struct Totals {
    float at[kRows][2 * kColumns + 1];
};

// Rows of the product: plane p of token m is row 8 p + m, or with one plane row m.
template <int kPlanes>
__device__ __forceinline__ const int8_t* plane_row(const LinearCodesArgs& a, const RowSet& rows, int row) {
    const int m = kPlanes == 2 ? row & 7 : row;
    if (m >= rows.count) return nullptr;
    const int64_t plane = kPlanes == 2 && row >= 8 ? static_cast<int64_t>(a.w.G) * a.w.group_padded : 0;
    return a.planes + rows.in(m) * a.planes_stride + plane;
}

__device__ __forceinline__ uint4 load16(const int8_t* row, int64_t at) {
    return row ? *reinterpret_cast<const uint4*>(row + at) : make_uint4(0, 0, 0, 0);
}

// Totals of 16 columns from row n0 of the weight on; thread (m, n) of the block keeps one in a register.
template <int kBits, int kPlanes>
__device__ __forceinline__ float column_totals(const LinearCodesArgs& a, const RowSet& rows, int n0, Sums* sums) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    const int units = a.w.group_padded >> 6;
    const int parts = a.w.G >= kWarps ? 1 : kWarps, groups = kWarps / parts;  // warps a group, groups a round
    const int8_t* top = plane_row<kPlanes>(a, rows, g);
    const int8_t* bottom = plane_row<kPlanes>(a, rows, g + 8);
    const uint8_t* codes =
        static_cast<const uint8_t*>(a.w.codes) + static_cast<int64_t>(n0 >> 4) * a.w.G * units * unit_bytes(kBits);
    const int my_m = threadIdx.x / kColumns, my_n = threadIdx.x % kColumns;
    const bool mine = my_m < rows.count;

    float total = 0;
    for (int first = 0, round = 0; first < a.w.G; first += groups, ++round) {
        Sums& s = sums[round & 1];
        const int group = first + warp / parts;
        int sum[2][4] = {};
        if (group < a.w.G)
#pragma unroll 4
            for (int u = warp % parts; u < units; u += parts) {
                const int64_t unit = static_cast<int64_t>(group) * units + u;
                multiply_unit(sum, load16(top, unit * 64 + 16 * t), load16(bottom, unit * 64 + 16 * t),
                              load_unit<kBits>(codes + unit * unit_bytes(kBits), lane));
            }
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
            for (int i = 0; i < 4; ++i) s.at[warp][g + i / 2 * 8][half * 8 + 2 * t + i % 2] = sum[half][i];
        __syncthreads();
        if (!mine) continue;
        for (int j = 0; j < groups && first + j < a.w.G; ++j) {
            int64_t high = 0, low = 0;
            for (int p = j * parts; p < (j + 1) * parts; ++p) {
                high += s.at[p][my_m][my_n];
                if (kPlanes == 2) low += s.at[p][my_m + 8][my_n];
            }
            const int64_t at = static_cast<int64_t>(first + j) * a.w.N + n0 + my_n;
            const float* grid = a.grid + rows.in(my_m) * a.grid_stride;
            const float scale = load_as(a.w.scales, at, a.w.scale_dtype) * grid[first + j];
            total = add_group(total, kPlanes == 2 ? 256 * high + low : high, a.w.zeros[at],
                              __float_as_int(grid[a.w.G + first + j]), scale);
        }
    }
    return total;
}

template <int kBits, int kPlanes>
__device__ __forceinline__ void linear_few(const LinearCodesArgs& a) {
    SHARED(Sums, sums, 2);
    SHARED(Totals, totals, 1);
    constexpr int kTokens = kPlanes == 2 ? 8 : 16;
    const RowSet rows = row_set(a.experts, a.rows, kTokens);
    if (rows.count == 0) return;
    const int columns = is_gated(a.e) ? 2 * kColumns : kColumns, n0 = blockIdx.x * columns;
    for (int c = 0; c < columns; c += kColumns) {
        const float total = column_totals<kBits, kPlanes>(a, rows, rows.expert * a.experts.N + n0 + c, sums);
        totals->at[threadIdx.x / kColumns][c + threadIdx.x % kColumns] = total;
        __syncthreads();
    }
    finish_tile(a.e, rows, n0, columns, [&](int m, int n) { return totals->at[m][n]; });
}

}  // namespace
}  // namespace di

// grid (N / 16, ceil(M / rows)), gated (N / 32, …); rows are 8 with two planes and 16 with one; block 256
#define LINEAR_FEW(name, bits, planes)                                                 \
    extern "C" __global__ void __launch_bounds__(256, 1) name(di::LinearCodesArgs a) { \
        di::linear_few<bits, planes>(a);                                               \
    }                                                                                  \
    EXPORT_KERNEL(name)
LINEAR_FEW(linear_w8_few2, 8, 2)
LINEAR_FEW(linear_w8_few1, 8, 1)
LINEAR_FEW(linear_w4_few2, 4, 2)
LINEAR_FEW(linear_w4_few1, 4, 1)
