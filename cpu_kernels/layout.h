// How activations, weights and KV blocks lie in memory. Everything is made of 32 x 32 cells.
//
// Activation [rows, cols]: cells of up to 32 rows x 32 columns, row-major inside a cell, cells of one row band
// adjacent:
//   [ceil(rows / R)][cols / 32][R][32]   with R = min(rows, 32)
// One token is one contiguous row; 32 or more tokens are the tile pairs that a matrix unit loads without a stride.
//
// Weight w[N,K] of a product x[M,K] · w[N,K]ᵀ: panels of 32 columns (of N), each a run of cells over K:
//   fp32        [N/32][K/32][32 k][32 n]
//   fp16, bf16  [N/32][K/32][2 halves of n][16 k pairs][16 n][2 k]   (one half of a cell is one AMX tile, 1 KiB)
//   8-bit       [N/32][K/64][2 halves of n][16 groups of 4 k][16 n][4 k]   codes; 2 KiB a cell of 64 x 32
//   4-bit       [N/32][K/64][2 halves of n][8 r][16 n][4 d]   a byte holds the codes of k = 4r + d (low half) and
//               k = 4(r + 8) + d; every quantization group is padded to 64 k, and after the codes come, each 64-byte
//               aligned, scales [N/32][G][32] and zero points [N/32][G][32] int16
//
// KV block of T tokens for one layer and one head: K then V, both as such panels, so attention is the same product
// twice:
//   K: n = token, k = head column   [T/32][D/32] cells        V: n = head column, k = token   [T/32][D/32] cells
// A quantized cache holds codes in such cells, of 1024 or 512 bytes, and after K and V four fp32 rows of T: the scales
// and zero points of K, then those of V. No byte holds codes of two tokens, so that threads may write neighbours:
//   8 bit    K, V  [2 halves of n][8][16 n][4 k]
//   4 bit    K     [2 halves of n][4][16 n][8 k], the even k in the low half of a byte
//            V     [8][16 n][4 k], a byte is token k's codes of column n (low half) and column 16 + n
//
// Quantized activations x[M,K]: planes of int8, [ceil(M / R)][K/64][planes][R][64]; with two planes the first is the
// high one.
#pragma once
#include <cstddef>
#include <cstdint>

namespace di {

constexpr int kCell = 32;                 // rows and columns of a cell
constexpr int kCellSize = kCell * kCell;  // elements of a full cell
constexpr int kMaxHead = 256;             // largest padded head size
constexpr int kMaxTileRows = 32;          // rows of a query tile in attention

using bf16 = uint16_t;
using f16 = uint16_t;

enum class DType : uint8_t { F32 = 0, F16 = 1, BF16 = 2, I8 = 4, U8 = 5, U4 = 6 };  // the values of di_dtype

constexpr size_t size_of(DType t) { return t == DType::F32 ? 4 : t == DType::F16 || t == DType::BF16 ? 2 : 1; }
constexpr bool is_quantized(DType t) { return t == DType::U8 || t == DType::U4; }
constexpr int round_up(int x, int to) { return (x + to - 1) / to * to; }

// K is summed in segments of at most 64 cells (2048 columns) whose borders depend on K alone; see docs/arithmetic.md.
constexpr int kSegmentCells = 64;
constexpr int segments(int cells) { return cells <= kSegmentCells ? 1 : (cells + kSegmentCells - 1) / kSegmentCells; }
constexpr int segment_begin(int cells, int s) {
    return static_cast<int>(static_cast<int64_t>(cells) * s / segments(cells));
}

// A column range of an activation. `cells` counts the parent's cells a row band, `first` is the range's first cell.
struct View {
    void* data;
    int32_t rows;
    int32_t cols;  // padded columns of this range
    int32_t cells;
    int32_t first;
    DType dtype;

    int band() const { return rows < kCell ? rows : kCell; }
    // Element 0 of row m; column c is at row(m)[(c / 32) * step() + c % 32].
    template <class T>
    T* row(int m) const {
        const int r = band();
        return static_cast<T*>(data) + (static_cast<size_t>(m / r) * cells + first) * r * kCell +
               static_cast<size_t>(m % r) * kCell;
    }
    // Elements from one 32-column chunk of a row to the next.
    size_t step() const { return static_cast<size_t>(band()) * kCell; }
};

// Byte sizes and offsets of the KV pool: [block][layer][head][K | V].
struct KvLayout {
    uint8_t* pool;
    int32_t layers, heads, head_size, block_tokens;  // head_size is padded
    DType dtype;

    size_t half_bytes() const {
        const size_t elements = static_cast<size_t>(block_tokens) * head_size;
        return dtype == DType::U4 ? elements / 2 : elements * size_of(dtype);
    }
    // The rows of scales and zero points after K and V; quantized caches only.
    size_t grid_bytes() const {
        return is_quantized(dtype) ? 4 * sizeof(float) * static_cast<size_t>(block_tokens) : 0;
    }
    size_t head_bytes() const { return 2 * half_bytes() + grid_bytes(); }
    size_t layer_bytes() const { return heads * head_bytes(); }
    size_t block_bytes() const { return layers * layer_bytes(); }
    uint8_t* k(int block, int layer, int head) const {
        return pool + block * block_bytes() + layer * layer_bytes() + head * head_bytes();
    }
    uint8_t* v(int block, int layer, int head) const { return k(block, layer, head) + half_bytes(); }
    // [4][block_tokens]: K scales, K zeros, V scales, V zeros.
    float* grid(int block, int layer, int head) const {
        return reinterpret_cast<float*>(k(block, layer, head) + 2 * half_bytes());
    }
};

// Quantized weights: cells are 64 k deep, so that one is two AMX tiles of bytes.
constexpr int kQuantCell = 64;

struct Planes {
    int8_t* data;
    int32_t rows;
    int32_t cells;  // of 64 k, over all groups with their padding
    int32_t count;  // 2 or 1
    int band() const { return rows < kCell ? rows : kCell; }
    size_t bytes() const { return static_cast<size_t>(rows) * cells * count * kQuantCell; }
    // The 64 bytes of row m in one cell and plane.
    int8_t* row(int m, int cell, int plane) const {
        const int r = band();
        return data + (((static_cast<size_t>(m / r) * cells + cell) * count + plane) * r + m % r) * kQuantCell;
    }
};

// Element index of (n, k) in a panel run of `cells` cells.
constexpr size_t panel_index_f32(int cells, int n, int k) {
    return (static_cast<size_t>(n / kCell) * cells + k / kCell) * kCellSize + static_cast<size_t>(k % kCell) * kCell +
           n % kCell;
}
constexpr size_t panel_index_16(int cells, int n, int k) {
    return (static_cast<size_t>(n / kCell) * cells + k / kCell) * kCellSize +
           static_cast<size_t>(((n % kCell) / 16 * 16 + (k % kCell) / 2) * 32 + (n % 16) * 2 + k % 2);
}

}  // namespace di
