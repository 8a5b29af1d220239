// The store of k and v into the paged cache: rounded to its type, or quantized by token and head. Neighbouring tokens
// share lines of a cell and may be written by different threads: nothing is read, changed and written back.
#pragma once
#include "kv_codes.h"
#include "rows.h"

namespace di {
namespace {

// 32 columns of one token of a K or V cell.
DI_INLINE void store_k(bf16* cell, const float* x, int token) {
    alignas(64) bf16 rounded[kCell];
    Vec::load(x).store_bf16(rounded);
    Vec::load(x + 16).store_bf16(rounded + 16);
    bf16* to = cell + token / 16 * (kCellSize / 2) + token % 16 * 2;
    for (int pair = 0; pair < 16; ++pair) __builtin_memcpy(to + pair * kCell, rounded + 2 * pair, 2 * sizeof(bf16));
}
DI_INLINE void store_v(bf16* cell, const float* x, int token) {
    alignas(64) bf16 rounded[kCell];
    Vec::load(x).store_bf16(rounded);
    Vec::load(x + 16).store_bf16(rounded + 16);
    bf16* to = cell + token / 2 * kCell + token % 2;
    for (int d = 0; d < 16; ++d) to[2 * d] = rounded[d];
    for (int d = 0; d < 16; ++d) to[2 * d + kCellSize / 2] = rounded[16 + d];
}
DI_INLINE void store_k(float* cell, const float* x, int token) {
    for (int d = 0; d < kCell; ++d) cell[d * kCell + token] = x[d];
}
DI_INLINE void store_v(float* cell, const float* x, int token) {
    Vec::load(x).store(cell + token * kCell);
    Vec::load(x + 16).store(cell + token * kCell + 16);
}

template <class T>
DI_INLINE void write_rounded(const KvWrite& a, const View& k, const View& v, int m) {
    const int cells = a.kv.head_size / kCell, block = a.block_of[m], token = a.offset_of[m] % kCell;
    const size_t group = static_cast<size_t>(a.offset_of[m] / kCell) * cells * kCellSize;
    const float *from_k = k.row<float>(m), *from_v = v.row<float>(m);
    for (int head = 0; head < a.kv.heads; ++head) {
        T* to_k = reinterpret_cast<T*>(a.kv.k(block, a.layer, head)) + group;
        T* to_v = reinterpret_cast<T*>(a.kv.v(block, a.layer, head)) + group;
        for (int c = 0; c < cells; ++c, from_k += k.step(), from_v += v.step()) {
            store_k(to_k + c * kCellSize, from_k, token);
            store_v(to_v + c * kCellSize, from_v, token);
        }
    }
}

// x as codes: x ≈ (code - zero) · scale
struct HeadGrid {
    float scale, zero;
};

// One head of one token, 32-column chunks `step` apart, zeros beyond its size. The range holds 0, so the zero point is
// a code and padding changes nothing. Where a number is not finite the scale is NaN.
DI_INLINE HeadGrid quantize_head(const float* x, size_t step, int padded, int largest, uint8_t* codes) {
    Vec high = Vec::zero(), negated_low = Vec::zero(), finite = Vec::zero();  // finite: 0, or NaN
    for (int d = 0; d < padded; d += 16) {
        const Vec part = Vec::load(x + d / kCell * step + d % kCell);
        high = max(part, high);
        negated_low = max(-part, negated_low);
        finite = finite + part * Vec::zero();
    }
    const Vec top = Vec::set(high.reduce_max()), below = Vec::set(negated_low.reduce_max());
    const Vec range = Vec::set(static_cast<float>(largest));
    const Vec scale = max((top + below) / range, Vec::set(1e-5f)) + Vec::set(finite.reduce_add());
    const auto clamp = [&](Vec y) { return min(max(y, Vec::zero()), range); };  // NaN becomes 0
    const Vec zero = clamp(rint(below / scale));
    for (int d = 0; d < padded; d += 16) {
        alignas(64) float code[16];
        clamp(rint(Vec::load(x + d / kCell * step + d % kCell) / scale) + zero).store(code);
        for (int i = 0; i < 16; ++i) codes[d + i] = static_cast<uint8_t>(static_cast<int>(code[i]));
    }
    return {scale.lane(0), zero.lane(0)};
}

template <int kBits>
DI_INLINE void write_codes(const KvWrite& a, const View& k, const View& v, int m) {
    using Codes = KvCodes<kBits>;
    const int padded = a.kv.head_size, cells = padded / kCell, block = a.block_of[m], at = a.offset_of[m];
    const size_t group = static_cast<size_t>(at / kCell) * cells * Codes::kCellBytes;
    const float *from_k = k.row<float>(m), *from_v = v.row<float>(m);
    alignas(64) uint8_t codes[kMaxHead];
    for (int head = 0; head < a.kv.heads; ++head, from_k += cells * k.step(), from_v += cells * v.step()) {
        float* grid = a.kv.grid(block, a.layer, head) + at;
        const auto store = [&](const float* from, size_t step, float* grid_row, auto store_cell) {
            const HeadGrid found = quantize_head(from, step, padded, Codes::kLargest, codes);
            grid_row[0] = found.scale;
            grid_row[a.kv.block_tokens] = found.zero;
            for (int c = 0; c < cells; ++c) store_cell(group + c * Codes::kCellBytes, codes + c * kCell);
        };
        uint8_t *to_k = a.kv.k(block, a.layer, head), *to_v = a.kv.v(block, a.layer, head);
        store(from_k, k.step(), grid,
              [&](size_t cell, const uint8_t* from) { Codes::store_k(to_k + cell, from, at % kCell); });
        store(from_v, v.step(), grid + 2 * a.kv.block_tokens,
              [&](size_t cell, const uint8_t* from) { Codes::store_v(to_v + cell, from, at % kCell); });
    }
}

inline void kv_write(const KvWrite& a, const View& k, const View& v, int m0, int m1) {
    for (int m = m0; m < m1; ++m) {
        switch (a.kv.dtype) {
            case DType::U8:
                write_codes<8>(a, k, v, m);
                break;
            case DType::U4:
                write_codes<4>(a, k, v, m);
                break;
            case DType::BF16:
                write_rounded<bf16>(a, k, v, m);
                break;
            default:
                write_rounded<float>(a, k, v, m);
        }
    }
}

}  // namespace
}  // namespace di
