// One warp's products of tiles, for the tests: every way in which operands reach tensor cores.
#include "tile.cuh"

namespace di {

using Element = f16;

__device__ __forceinline__ void store_tile(float* y, const Tile& sum, int lane) {
    for (int e = 0; e < 8; ++e) y[tile_row(lane, e % 4 / 2) * 16 + tile_column(lane, e / 4, e % 4)] = sum[e / 4][e % 4];
}

}  // namespace di

// x[16,16] · w[16,16]ᵀ → s, s · v[16,16] → y, both through shared memory; x[16,32] · w[16,32]ᵀ → z straight from
// memory, whose first 16 columns are x and w from before.
struct TileArgs {
    const uint16_t *x, *w, *v;
    float *s, *y, *z;
};

extern "C" __global__ void tile_products(TileArgs a) {
    using namespace di;
    constexpr int kStride = 24;
    SHARED(uint16_t, tiles, 3 * 16 * kStride);
    const int lane = threadIdx.x;
    for (int i = lane; i < 256; i += 32) {
        const int at = i / 16 * kStride + i % 16;
        tiles[at] = a.x[i / 16 * 32 + i % 16];
        tiles[16 * kStride + at] = a.w[i / 16 * 32 + i % 16];
        tiles[32 * kStride + at] = a.v[i];
    }
    __syncwarp();
    const unsigned char* bytes = reinterpret_cast<const unsigned char*>(tiles);
    uint32_t left[kOperand], right[kOperand];
    Tile sum = {}, next = {};
    load_rows(left, bytes, 2 * kStride, lane);
    load_columns(right, bytes + 32 * kStride, 2 * kStride, lane);
    mma_tile(sum, left, right, Element{});
    store_tile(a.s, sum, lane);

    uint32_t pairs[2][2];
    for (int j = 0; j < 2; ++j)
        for (int r = 0; r < 2; ++r)
            pairs[j][r] = from_float<Element>(sum[j][2 * r]).u |
                          static_cast<uint32_t>(from_float<Element>(sum[j][2 * r + 1]).u) << 16;
    rows_of_sums(left, pairs, lane);
    load_columns_across(right, bytes + 64 * kStride, 2 * kStride, lane);
    mma_tile_across(next, left, right, Element{});
    store_tile(a.y, next, lane);

    StraightTile<Element> straight;
    const int row = StraightTile<Element>::first_row(lane), k = 8 * StraightTile<Element>::place(lane);
    uint4 x[2], w[2];
    for (int i = 0; i < 2; ++i) {
        x[i] = *reinterpret_cast<const uint4*>(a.x + (row + 8 * i) * 32 + k);
        w[i] = *reinterpret_cast<const uint4*>(a.w + (row + 8 * i) * 32 + k);
    }
    straight.add(x, w);
    Tile total;
    straight.total(total, lane);
    store_tile(a.z, total, lane);
}
EXPORT_KERNEL(tile_products)
