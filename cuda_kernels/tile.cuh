// Products of 16 x 16 tiles by a warp on tensor cores, in terms that all of them share: where a lane's sums lie, how it
// reads its operands, and one call a 16 of K. Ampere and later take 16 x 8 x 16 at a time, Turing 16 x 8 x 8; Volta's
// four quad pairs (lanes 4q … 4q + 3 and 16 more) take 8 x 8 x 4 each and have a quarter of the tile (source: PTX ISA,
// fragments of mma.m8n8k4, m16n8k8 and m16n8k16).
#pragma once
#include "device.cuh"

namespace di {

// A lane's sums: element [j][i] is of row tile_row(lane, i / 2) and column tile_column(lane, j, i).
using Tile = float[2][4];

#if DI_ARCH >= 750

constexpr int kOperand = 4;                // registers of 16 x 16 elements
constexpr int kRowBit0 = 1, kRowBit1 = 2;  // the lanes with these bits of their numbers changed have the same rows

__device__ __forceinline__ int tile_row(int lane, int r) { return lane / 4 + 8 * r; }
__device__ __forceinline__ int tile_column(int lane, int j, int i) { return 8 * j + lane % 4 * 2 + i % 2; }

// Rows of the left matrix: tile[16][16] in shared memory, `stride` bytes a row.
__device__ __forceinline__ void load_rows(uint32_t (&a)[kOperand], const unsigned char* tile, int stride, int lane) {
    ldmatrix_x4(a, tile + lane % 16 * stride + lane / 16 * 16);
}
// Columns of the right matrix, each of which is a row of tile[16][16].
__device__ __forceinline__ void load_columns(uint32_t (&b)[kOperand], const unsigned char* tile, int stride, int lane) {
    ldmatrix_x4(b, tile + (lane / 16 * 8 + lane % 8) * stride + lane / 8 % 2 * 16);
}
// Or each of which is a column of tile[16][16].
__device__ __forceinline__ void load_columns_across(uint32_t (&b)[kOperand], const unsigned char* tile, int stride,
                                                    int lane) {
    ldmatrix_x4_trans(b, tile + lane % 16 * stride + lane / 16 * 16);
}

// sum += a · b.
template <class T>
__device__ __forceinline__ void mma_tile(Tile& sum, const uint32_t (&a)[kOperand], const uint32_t (&b)[kOperand], T) {
    const uint32_t left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
    mma_16816(sum[0], a, left, T{});
    mma_16816(sum[1], a, right, T{});
}
template <class T>
__device__ __forceinline__ void mma_tile_across(Tile& sum, const uint32_t (&a)[kOperand], const uint32_t (&b)[kOperand],
                                                T) {
    mma_tile(sum, a, b, T{});
}

// Sums of one product as the left matrix of the next: pairs[j][r] are the two neighbours of row r in half j.
__device__ __forceinline__ void rows_of_sums(uint32_t (&a)[kOperand], const uint32_t (&pairs)[2][2], int) {
    a[0] = pairs[0][0], a[1] = pairs[0][1], a[2] = pairs[1][0], a[3] = pairs[1][1];
}

// A tile whose operands come straight from memory: of each 32 of K a lane brings eight consecutive elements, those from
// 8 · place(lane) on, of rows first_row(lane) and 8 more of both matrices. The order of k is free as long as both
// agree.
template <class T>
struct StraightTile {
    Tile sum = {};

    static __device__ __forceinline__ int first_row(int lane) { return lane >> 2; }
    static __device__ __forceinline__ int place(int lane) { return lane & 3; }

    __device__ __forceinline__ void add(const uint4 (&x)[2], const uint4 (&w)[2]) {
        const uint32_t a[2][4] = {{x[0].x, x[1].x, x[0].y, x[1].y}, {x[0].z, x[1].z, x[0].w, x[1].w}};
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            const uint32_t b[2][2] = {{w[j].x, w[j].y}, {w[j].z, w[j].w}};
#pragma unroll
            for (int s = 0; s < 2; ++s) mma_16816(sum[j], a[s], b[s], T{});
        }
    }
    __device__ __forceinline__ void total(Tile& out, int) const {
#pragma unroll
        for (int e = 0; e < 8; ++e) out[e / 4][e % 4] = sum[e / 4][e % 4];
    }
};

#else

constexpr int kOperand = 8;
constexpr int kRowBit0 = 2, kRowBit1 = 8;

// Bit 2 of the lane chooses the lower rows, bit 3 the right columns.
__device__ __forceinline__ int quad_row(int lane) { return (lane & 3) + lane / 16 * 4; }
__device__ __forceinline__ int tile_row(int lane, int r) { return (lane & 1) + lane / 16 * 4 + 2 * (lane & 4) + 2 * r; }
__device__ __forceinline__ int tile_column(int lane, int j, int i) { return 4 * j + (lane & 2) + i % 2 + (lane & 8); }

__device__ __forceinline__ void load_16(uint32_t (&r)[kOperand], const unsigned char* row) {
    const uint4 first = *reinterpret_cast<const uint4*>(row), second = *reinterpret_cast<const uint4*>(row + 16);
    r[0] = first.x, r[1] = first.y, r[2] = first.z, r[3] = first.w;
    r[4] = second.x, r[5] = second.y, r[6] = second.z, r[7] = second.w;
}
__device__ __forceinline__ void load_rows(uint32_t (&a)[kOperand], const unsigned char* tile, int stride, int lane) {
    load_16(a, tile + (quad_row(lane) + 2 * (lane & 4)) * stride);
}
__device__ __forceinline__ void load_columns(uint32_t (&b)[kOperand], const unsigned char* tile, int stride, int lane) {
    load_16(b, tile + (quad_row(lane) + (lane & 8)) * stride);
}
__device__ __forceinline__ void load_columns_across(uint32_t (&b)[kOperand], const unsigned char* tile, int stride,
                                                    int lane) {
    const unsigned char* from = tile + (lane & 3) * stride + 2 * (lane / 16 * 4 + (lane & 8));
#pragma unroll
    for (int s = 0; s < 4; ++s) {
        const uint2 four = *reinterpret_cast<const uint2*>(from + 4 * s * stride);
        b[2 * s] = four.x, b[2 * s + 1] = four.y;
    }
}

__device__ __forceinline__ void mma_tile(Tile& sum, const uint32_t (&a)[kOperand], const uint32_t (&b)[kOperand], f16) {
#pragma unroll
    for (int s = 0; s < kOperand; s += 2) mma_884(sum, a[s], a[s + 1], b[s], b[s + 1]);
}
__device__ __forceinline__ void mma_tile_across(Tile& sum, const uint32_t (&a)[kOperand], const uint32_t (&b)[kOperand],
                                                f16) {
#pragma unroll
    for (int s = 0; s < kOperand; s += 2) mma_884_across(sum, a[s], a[s + 1], b[s], b[s + 1]);
}

// A lane has two columns of every four of two rows, and shall have all sixteen of one: its neighbour has the others of
// these four, the quad pair beside it the other half.
__device__ __forceinline__ void rows_of_sums(uint32_t (&a)[kOperand], const uint32_t (&pairs)[2][2], int lane) {
    const bool second = lane & 2, right = lane & 8;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
        const uint32_t theirs = __shfl_xor_sync(kWarp, second ? pairs[j][0] : pairs[j][1], 2);
        const uint32_t mine[2] = {second ? theirs : pairs[j][0], second ? pairs[j][1] : theirs};
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const uint32_t beside = __shfl_xor_sync(kWarp, mine[i], 8);
            a[2 * j + i] = right ? beside : mine[i];
            a[4 + 2 * j + i] = right ? mine[i] : beside;
        }
    }
}

// Each quad pair has eight of the 32 of K for the whole tile.
template <class T>
struct StraightTile {
    Tile sum[2][2] = {};

    static __device__ __forceinline__ int first_row(int lane) { return quad_row(lane); }
    static __device__ __forceinline__ int place(int lane) { return lane >> 2 & 3; }

    __device__ __forceinline__ void add(const uint4 (&x)[2], const uint4 (&w)[2]) {
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                mma_884(sum[i][j], x[i].x, x[i].y, w[j].x, w[j].y);
                mma_884(sum[i][j], x[i].z, x[i].w, w[j].z, w[j].w);
            }
    }
    // Of the four sums of each element every quad pair keeps its quarter of the tile.
    __device__ __forceinline__ void total(Tile& out, int lane) const {
        const bool low = lane & 4, right = lane & 8;
#pragma unroll
        for (int e = 0; e < 8; ++e) {
            float half[2];
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                const float upper = sum[0][j][e / 4][e % 4], lower = sum[1][j][e / 4][e % 4];
                half[j] = (low ? lower : upper) + __shfl_xor_sync(kWarp, low ? upper : lower, 4);
            }
            out[e / 4][e % 4] = (right ? half[1] : half[0]) + __shfl_xor_sync(kWarp, right ? half[0] : half[1], 8);
        }
    }
};

#endif

}  // namespace di
