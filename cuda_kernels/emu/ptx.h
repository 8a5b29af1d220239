// The instructions that device.cuh wraps, on the emulator: conversions, matrix products, ldmatrix, asynchronous copies.
#pragma once
#include "cuda_language.h"

struct bf16 {
    uint16_t u;
};
struct f16 {
    uint16_t u;
};

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) { return emu_bits<float>(uint32_t{x.u} << 16); }
inline float to_float(f16 x) { return static_cast<float>(emu_bits<_Float16>(x.u)); }

template <class T>
T from_float(float x);
template <>
inline float from_float<float>(float x) {
    return x;
}
template <>
inline bf16 from_float<bf16>(float x) {
    const uint32_t bits = emu_bits<uint32_t>(x);
    if (x != x) return {static_cast<uint16_t>(0x7FFF)};
    return {static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)};
}
template <>
inline f16 from_float<f16>(float x) {
    return {emu_bits<uint16_t>(static_cast<_Float16>(x))};
}

// ---- products of byte groups ----

inline int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 4; ++i) c += static_cast<int8_t>(a >> (8 * i)) * static_cast<int8_t>(b >> (8 * i));
    return c;
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
    for (int i = 0; i < 4; ++i) c += (a >> (8 * i) & 0xFF) * (b >> (8 * i) & 0xFF);
    return c;
}
// Signed bytes of a times unsigned bytes of b.
inline int dp4a_signed_unsigned(uint32_t a, uint32_t b, int c) {
    for (int i = 0; i < 4; ++i) c += static_cast<int8_t>(a >> (8 * i)) * static_cast<int>(b >> (8 * i) & 0xFF);
    return c;
}

// ---- matrix products of a warp ----

namespace emu {

inline const char kMma16 = 0, kMma8 = 0, kMatrix = 0, kMatrixTransposed = 0;

template <class Acc>
struct MmaIn {
    Acc d[4];
    uint32_t a[4], b[2];
};
template <class Acc>
struct MmaOut {
    Acc d[4];
};

// a[16,K] · b[8,K]ᵀ + d[16,8] of a warp, K in two halves; `per` elements a register. Lane 4g + t holds rows g and g + 8
// of a, column g of b, and columns 2t and 2t + 1 of d.
template <class Acc, class Sum, int per, class A, class B>
void mma(const MmaIn<Acc>* in, MmaOut<Acc>* out, A element_a, B element_b) {
    constexpr int half = 4 * per;
    Sum a[16][2 * half], b[8][2 * half];
    for (int lane = 0; lane < kLanes; ++lane) {
        const int g = lane / 4, t = lane % 4;
        for (int i = 0; i < per; ++i) {
            const int k = per * t + i;
            a[g][k] = element_a(in[lane].a[0], i);
            a[g + 8][k] = element_a(in[lane].a[1], i);
            a[g][half + k] = element_a(in[lane].a[2], i);
            a[g + 8][half + k] = element_a(in[lane].a[3], i);
            b[g][k] = element_b(in[lane].b[0], i);
            b[g][half + k] = element_b(in[lane].b[1], i);
        }
    }
    for (int lane = 0; lane < kLanes; ++lane)
        for (int i = 0; i < 4; ++i) {
            const Sum *row = a[lane / 4 + i / 2 * 8], *column = b[lane % 4 * 2 + i % 2];
            Sum sum = 0;
            for (int k = 0; k < 2 * half; ++k) sum += row[k] * column[k];
            out[lane].d[i] = static_cast<Acc>(static_cast<Sum>(in[lane].d[i]) + sum);
        }
}

template <class T>
float half_of(uint32_t pair, int i) {
    return to_float(T{static_cast<uint16_t>(pair >> (16 * i))});
}

template <class T>
void mma_f(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    using In = MmaIn<float>;
    using Out = MmaOut<float>;
    In in;
    std::copy(d, d + 4, in.d);
    std::copy(a, a + 4, in.a);
    std::copy(b, b + 2, in.b);
    const Out out = the_machine.exchange<In, Out>(
        &kMma16, in, [](const In* all, Out* results) { mma<float, double, 2>(all, results, half_of<T>, half_of<T>); });
    std::copy(out.d, out.d + 4, d);
}

inline void mma_i(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    using In = MmaIn<int>;
    using Out = MmaOut<int>;
    In in;
    std::copy(d, d + 4, in.d);
    std::copy(a, a + 4, in.a);
    std::copy(b, b + 2, in.b);
    const Out out = the_machine.exchange<In, Out>(&kMma8, in, [](const In* all, Out* results) {
        mma<int, int, 4>(
            all, results, [](uint32_t word, int i) { return static_cast<int>(static_cast<int8_t>(word >> (8 * i))); },
            [](uint32_t word, int i) { return static_cast<int>(word >> (8 * i) & 0xFF); });
    });
    std::copy(out.d, out.d + 4, d);
}

// The four products of mma.m8n8k4. Lane 4q + t, and 4 more rows 16 lanes further, hold row t of a of quad pair q, and
// of b column t, or across row t and four of its columns; sums are spread over pairs of rows and of columns.
struct QuadIn {
    float d[8];
    uint32_t a[2], b[2];
};
struct QuadOut {
    float d[8];
};
inline const char kMmaQuads = 0, kMmaQuadsAcross = 0;

template <bool across>
void mma_quads_of_warp(const QuadIn* in, QuadOut* out) {
    double a[4][8][4], b[4][4][8];
    for (int lane = 0; lane < kLanes; ++lane) {
        const int q = lane / 4 % 4, t = lane % 4, more = lane / 16 * 4;
        for (int i = 0; i < 4; ++i) {
            a[q][t + more][i] = static_cast<double>(half_of<f16>(in[lane].a[i / 2], i % 2));
            const auto x = static_cast<double>(half_of<f16>(in[lane].b[i / 2], i % 2));
            if (across)
                b[q][t][i + more] = x;
            else
                b[q][i][t + more] = x;
        }
    }
    for (int lane = 0; lane < kLanes; ++lane)
        for (int i = 0; i < 8; ++i) {
            const int q = lane / 4 % 4, row = (lane & 1) + (i & 2) + lane / 16 * 4,
                      column = (i & 4) + (lane & 2) + (i & 1);
            double sum = 0;
            for (int k = 0; k < 4; ++k) sum += a[q][row][k] * b[q][k][column];
            out[lane].d[i] = static_cast<float>(static_cast<double>(in[lane].d[i]) + sum);
        }
}

template <bool across>
void mma_quads(float (&d)[2][4], uint32_t a0, uint32_t a1, uint32_t b0, uint32_t b1) {
    QuadIn in{{}, {a0, a1}, {b0, b1}};
    std::memcpy(in.d, d, sizeof in.d);
    const QuadOut out =
        the_machine.exchange<QuadIn, QuadOut>(across ? &kMmaQuadsAcross : &kMmaQuads, in, mma_quads_of_warp<across>);
    std::memcpy(d, out.d, sizeof out.d);
}

}  // namespace emu

// What a chip has; device.cuh makes the rest of it.
#if DI_ARCH >= 800

// d[16,8] += a[16,16] · b[8,16]ᵀ in 16-bit numbers; the last argument only says which.
template <class T>
void mma_16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], T) {
    emu::mma_f<T>(d, a, b);
}
// d[16,8] += a[16,32] · b[8,32]ᵀ, signed bytes of a times unsigned bytes of b.
inline void mma_16832(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { emu::mma_i(d, a, b); }

#elif DI_ARCH >= 750

// Half of the above, in K: d[16,8] += a[16,8] · b[8,8]ᵀ.
inline void mma_1688(float (&d)[4], uint32_t top, uint32_t bottom, uint32_t b, f16) {
    emu::mma_f<f16>(d, {top, bottom, 0, 0}, {b, 0});
}
// And a quarter: d[8,8] += a[8,16] · b[8,16]ᵀ.
inline void mma_8816(int& left, int& right, uint32_t a, uint32_t b) {
    int d[4] = {left, right, 0, 0};
    emu::mma_i(d, {a, 0, 0, 0}, {b, 0});
    left = d[0], right = d[1];
}

#else

// Four products, one a quad pair: d[8,8] += a[8,4] · b[8,4]ᵀ, or · b[4,8].
inline void mma_884(float (&d)[2][4], uint32_t a0, uint32_t a1, uint32_t b0, uint32_t b1) {
    emu::mma_quads<false>(d, a0, a1, b0, b1);
}
inline void mma_884_across(float (&d)[2][4], uint32_t a0, uint32_t a1, uint32_t b0, uint32_t b1) {
    emu::mma_quads<true>(d, a0, a1, b0, b1);
}

#endif

// Four 8 x 8 matrices of 16-bit elements; lane 8m + i brings the address of row i of matrix m.
inline void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
    using Out = emu::MmaOut<uint32_t>;
    const Out out =
        emu::the_machine.exchange<const void*, Out>(&emu::kMatrix, row, [](const void* const* rows, Out* results) {
            for (int lane = 0; lane < emu::kLanes; ++lane)
                for (int m = 0; m < 4; ++m)
                    std::memcpy(&results[lane].d[m], static_cast<const char*>(rows[8 * m + lane / 4]) + 4 * (lane % 4),
                                4);
        });
    std::copy(out.d, out.d + 4, r);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
    using Out = emu::MmaOut<uint32_t>;
    const Out out = emu::the_machine.exchange<const void*, Out>(
        &emu::kMatrixTransposed, row, [](const void* const* rows, Out* results) {
            for (int lane = 0; lane < emu::kLanes; ++lane)
                for (int m = 0; m < 4; ++m) {
                    uint16_t pair[2];
                    for (int i = 0; i < 2; ++i)
                        std::memcpy(&pair[i],
                                    static_cast<const char*>(rows[8 * m + 2 * (lane % 4) + i]) + 2 * (lane / 4), 2);
                    std::memcpy(&results[lane].d[m], pair, 4);
                }
        });
    std::copy(out.d, out.d + 4, r);
}

// ---- asynchronous copies: they arrive when their group is waited for, not before ----

inline void cp_async16(void* to, const void* from, bool there = true) {
    if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % 16)
        emu::the_machine.die("an asynchronous copy is not aligned to 16 bytes");
    emu::the_machine.current->open_copies.push_back({to, from, 16, !there});
}
inline void cp_async_commit() {
    emu::Fiber& me = *emu::the_machine.current;
    me.copy_groups.push_back(std::move(me.open_copies));
    me.open_copies.clear();
}
template <int N>
void cp_async_wait() {
    emu::Fiber& me = *emu::the_machine.current;
    while (me.copy_groups.size() > size_t{N}) {
        for (const emu::AsyncCopy& copy : me.copy_groups.front())
            if (copy.zero)
                std::memset(copy.to, 0, static_cast<size_t>(copy.bytes));
            else
                std::memcpy(copy.to, copy.from, static_cast<size_t>(copy.bytes));
        me.copy_groups.pop_front();
    }
}
