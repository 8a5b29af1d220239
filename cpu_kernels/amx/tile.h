// AMX tile instructions as functions. The compiler's own macros declare no memory operand on loads, so it may move or
// drop the stores that fill a tile's memory; these do.
#pragma once
#include "../generic/inline.h"
#include "../layout.h"

namespace di {
namespace {

constexpr long kTileStride = 64;  // bytes of a tile row
constexpr size_t kTileBytes = 1024;

struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};

// The 2 x 2 arrangement of every product: tiles 0, 1 hold x (rows0, rows1 rows), tiles 2, 3 the halves of a weight
// cell, tiles 4, 5 the sums of tile 0 and tiles 6, 7 those of tile 1.
DI_INLINE void configure_tiles(int rows0, int rows1) {
    TileConfig c;
    const int rows[8] = {rows0, rows1, 16, 16, rows0, rows0, rows1, rows1};
    for (int i = 0; i < 8; ++i) {
        c.rows[i] = static_cast<uint8_t>(rows[i]);
        c.row_bytes[i] = rows[i] ? kTileStride : 0;
    }
    // The whole struct is the operand: GCC 12 drops the stores behind _tile_loadconfig.
    asm volatile("ldtilecfg %0" ::"m"(c));
}

inline void release_tiles() { asm volatile("tilerelease" ::: "memory"); }

template <int kTile>
DI_INLINE void tile_zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}

template <int kTile>
DI_INLINE void tile_load(const void* p, long stride = kTileStride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(kTile) : "memory");
}

// For an operand that is read once while another one should stay in L1.
template <int kTile>
DI_INLINE void tile_load_stream(const void* p, long stride = kTileStride) {
    asm volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(kTile) : "memory");
}

template <int kTile>
DI_INLINE void tile_store(void* p, long stride = kTileStride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(stride), "i"(kTile) : "memory");
}

// c += a · b in the order of docs/arithmetic.md: even and odd k in two chains, then one addition.
template <int kC, int kA, int kB>
DI_INLINE void tile_multiply_bf16() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kC), "i"(kA), "i"(kB));
}

// c += a · b for signed bytes a and unsigned, or signed, bytes b.
template <bool kSigned, int kC, int kA, int kB>
DI_INLINE void tile_multiply_bytes() {
    if (kSigned) {
        asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kC), "i"(kA), "i"(kB));
    } else {
        asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kC), "i"(kA), "i"(kB));
    }
}

}  // namespace
}  // namespace di
