// Packs the rows of a weight w[N,K] into panels; cpu_kernels/layout.h has the order.
#pragma once
#include "convert.h"

namespace di {
namespace {

using Dword __attribute__((aligned(1), may_alias)) = uint32_t;

// to[j][i] = from[i][j] for 16 x 16 dwords; strides in dwords.
DI_INLINE void transpose_16(Dword* to, size_t to_stride, const Dword* from, size_t from_stride) {
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) {
        for (int i = 0; i < 16; ++i) to[j * to_stride + i] = from[i * from_stride + j];
    }
}

struct Source {
    const void* const* rows;  // of the panel
    DType type;
};

// 32 rows x `count` source columns from k, as a row-major cell of the destination's type with zeros to the right.
template <size_t kSize>
DI_INLINE void read_cell(char* cell, DType type, const Source& src, size_t k, int count) {
    for (int n = 0; n < kCell; ++n, cell += kCell * kSize) {
        const char* from = static_cast<const char*>(src.rows[n]);
        if (!from || count < kCell) __builtin_memset(cell, 0, kCell * kSize);
        if (!from) continue;
        from += k * size_of(src.type);
        if (count == kCell && src.type == type) {
            __builtin_memcpy(cell, from, kCell * kSize);
        } else {
            convert(cell, type, from, src.type, static_cast<size_t>(count));
        }
    }
}

// Row-major 32 x 32 cell to the panel's order: 16-bit types move pairs of k, which are dwords.
DI_INLINE void place_cell(char* to, const char* cell, DType type) {
    Dword* out = reinterpret_cast<Dword*>(to);
    const Dword* in = reinterpret_cast<const Dword*>(cell);
    if (type == DType::F32) {
        for (int i = 0; i < 32; i += 16) {
            for (int j = 0; j < 32; j += 16) transpose_16(out + j * 32 + i, 32, in + i * 32 + j, 32);
        }
    } else {
        for (int h = 0; h < 2; ++h) transpose_16(out + h * 256, 16, in + h * 256, 16);
    }
}

void pack(void* dst, DType dst_type, const void* const* rows, DType src_type, int k, int k_group, int k_group_padded,
          int p0, int p1) {
    const int groups = (k + k_group - 1) / k_group, group_cells = k_group_padded / kCell;
    const size_t cell_bytes = kCellSize * size_of(dst_type);
    char* to = static_cast<char*>(dst) + static_cast<size_t>(p0) * groups * group_cells * cell_bytes;
    alignas(64) char cell[kCellSize * sizeof(float)];
    for (int p = p0; p < p1; ++p) {
        const Source src{rows + static_cast<size_t>(p) * kCell, src_type};
        for (int g = 0; g < groups; ++g) {
            const int begin = g * k_group, end = begin + k_group < k ? begin + k_group : k;
            for (int c = 0; c < group_cells; ++c, to += cell_bytes) {
                const int at = begin + c * kCell, left = end - at;
                if (left <= 0) {
                    __builtin_memset(to, 0, cell_bytes);
                    continue;
                }
                const int count = left < kCell ? left : kCell;
                if (dst_type == DType::F32) {
                    read_cell<4>(cell, dst_type, src, at, count);
                } else {
                    read_cell<2>(cell, dst_type, src, at, count);
                }
                place_cell(to, cell, dst_type);
            }
        }
    }
}

}  // namespace
}  // namespace di
