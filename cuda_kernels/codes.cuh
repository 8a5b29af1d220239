// Where the codes of a quantized weight w[N,K] lie. They are kept in the order in which tensor cores take their second
// operand, in units of 16 rows by 64 columns, so that a lane's share of a unit is 16 or 32 consecutive bytes.
//   8 bit   [N/16][Kp/64][2 halves of n][32 lanes][16 bytes]
//   4 bit   [N/16][Kp/64]               [32 lanes][16 bytes]
// Lane 4 · (n mod 8) + t holds columns 16 t to 16 t + 15 of its row, with 8 bits in order. With 4 bits byte i of word
// 2 · half + s holds column 8 s + i in its low and column 8 s + 4 + i in its high nibble.
#pragma once
#include "view.cuh"

namespace di {

__device__ __forceinline__ int64_t unit_bytes(int bits) { return bits == 8 ? 1024 : 512; }

// The codes of a lane: b[half][s] is the second operand of the s-th product with 32 columns.
struct CodeUnit {
    uint32_t b[2][2][2];
};

template <int kBits>
__device__ __forceinline__ CodeUnit load_unit(const uint8_t* unit, int lane) {
    const uint4* from = reinterpret_cast<const uint4*>(unit) + lane;
    CodeUnit r;
    if (kBits == 8) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const uint4 w = from[32 * half];
            r.b[half][0][0] = w.x, r.b[half][0][1] = w.y, r.b[half][1][0] = w.z, r.b[half][1][1] = w.w;
        }
    } else {
        const uint4 w = *from;
        const uint32_t words[2][2] = {{w.x, w.y}, {w.z, w.w}};
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
            for (int s = 0; s < 2; ++s) {
                r.b[half][s][0] = words[half][s] & 0x0F0F0F0Fu;
                r.b[half][s][1] = words[half][s] >> 4 & 0x0F0F0F0Fu;
            }
    }
    return r;
}

// sum[16 rows, 16 columns] += planes · codes over the unit's 64 columns; `top` and `bottom` are 16 bytes of rows
// lane / 4 and lane / 4 + 8, from column 16 (lane mod 4).
__device__ __forceinline__ void multiply_unit(int (&sum)[2][4], const uint4& top, const uint4& bottom,
                                              const CodeUnit& unit) {
    const uint32_t a[2][4] = {{top.x, bottom.x, top.y, bottom.y}, {top.z, bottom.z, top.w, bottom.w}};
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int s = 0; s < 2; ++s) mma_16832(sum[half], a[s], unit.b[half][s]);
}

__device__ __forceinline__ int code_at(const Codes& w, int n, int k) {
    const int64_t unit = static_cast<int64_t>(n >> 4) * (w.G * (w.group_padded >> 6)) + (k >> 6);
    const int half = n >> 3 & 1, lane = (n & 7) * 4 + (k >> 4 & 3);
    const uint8_t* data = static_cast<const uint8_t*>(w.codes) + unit * unit_bytes(w.bits) + lane * 16;
    if (w.bits == 8) return data[half * 512 + (k & 15)];
    return data[(2 * half + (k >> 3 & 1)) * 4 + (k & 3)] >> (k & 4) & 15;
}

// One group's part of a total: T = 256 · high + low - zero · Σa exactly, rounded once, times both scales, added.
__device__ __forceinline__ float add_group(float total, int64_t sum, int zero, int activations, float scale) {
    return fmaf(static_cast<float>(sum - static_cast<int64_t>(zero) * activations), scale, total);
}

// (code - zero) · scale, rounded once.
__device__ __forceinline__ float code_value(const Codes& w, int n, int k) {
    const int g = k / w.group;
    const int64_t at = static_cast<int64_t>(g) * w.N + n;
    const int code = code_at(w, n, g * w.group_padded + k % w.group);
    return static_cast<float>(code - w.zeros[at]) * load_as(w.scales, at, w.scale_dtype);
}

}  // namespace di
