// The rows of a product that a block has: consecutive ones, or with experts those of a tile, or one.
#pragma once
#include "view.cuh"

namespace di {

struct RowSet {
    const int32_t* list;
    int first, count, share, expert;

    __device__ __forceinline__ int out(int i) const { return list ? list[first + i] : first + i; }
    __device__ __forceinline__ int in(int i) const { return share == 1 ? out(i) : out(i) / share; }
};

__device__ __forceinline__ int clamped_expert(const float* routing, int64_t stride, int chosen, int experts, int row) {
    const int id = __float_as_int(routing[row / chosen * stride + row % chosen]);
    return min(max(id, 0), experts - 1);
}

// Block row blockIdx.y of tiles of `most` rows.
__device__ __forceinline__ RowSet row_set(const Experts& e, const Rows& rows, int most) {
    const int row = blockIdx.y, M = count(rows);
    if (!e.chosen) return {nullptr, row * most, min(most, max(M - row * most, 0)), 1, 0};
    if (!e.list) {
        if (row >= M * e.chosen) return {nullptr, 0, 0, 1, 0};
        return {nullptr, row, 1, e.share, clamped_expert(e.routing, e.routing_stride, e.chosen, e.experts, row)};
    }
    if (row >= *e.n_tiles) return {nullptr, 0, 0, 1, 0};
    const ExpertTile tile = e.tiles[row];
    return {e.list, tile.first, tile.count, e.share, tile.expert};
}

}  // namespace di
