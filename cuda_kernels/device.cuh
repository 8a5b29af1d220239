// What kernels are written in: PTX behind portable names. The same sources compile with NVRTC or nvcc for a GPU and
// with g++ for the emulator, and include no header of CUDA's.
//
// DI_ARCH is the architecture, 700 to 900; on the emulator it only chooses code paths.
#pragma once
#include "args.h"

#ifdef DI_EMU

#ifndef DI_ARCH
#define DI_ARCH 800
#endif
#include "emu/ptx.h"

#else

#define DI_ARCH __CUDA_ARCH__
#define SHARED(T, name, count) __shared__ T name[count]
#define SHARED_DYNAMIC(T, name)                                         \
    extern __shared__ __align__(128) unsigned char di_dynamic_shared[]; \
    T* const name = reinterpret_cast<T*>(di_dynamic_shared)
#define EXPORT_KERNEL(kernel)

struct bf16 {
    uint16_t u;
};
struct f16 {
    uint16_t u;
};

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __uint_as_float(static_cast<uint32_t>(x.u) << 16); }
__device__ __forceinline__ float to_float(f16 x) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(x.u));
    return f;
}

template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
    return x;
}
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float x) {
    bf16 r;
#if DI_ARCH >= 800
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r.u) : "f"(x));
#else
    const uint32_t bits = __float_as_uint(x);
    r.u = x != x ? static_cast<uint16_t>(0x7FFF) : static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
#endif
    return r;
}
template <>
__device__ __forceinline__ f16 from_float<f16>(float x) {
    f16 r;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r.u) : "f"(x));
    return r;
}

// ---- products of byte groups ----

// Signed bytes of a times unsigned bytes of b.
__device__ __forceinline__ int dp4a_signed_unsigned(uint32_t a, uint32_t b, int c) {
    int d;
    asm("dp4a.s32.u32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

// ---- matrix products of a warp ----

#if DI_ARCH >= 800

// d[16,8] += a[16,16] · b[8,16]ᵀ in 16-bit numbers; the last argument only says which.
__device__ __forceinline__ void mma_16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bf16) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void mma_16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], f16) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// d[16,8] += a[16,32] · b[8,32]ᵀ, signed bytes of a times unsigned bytes of b.
__device__ __forceinline__ void mma_16832(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

#elif DI_ARCH >= 750

// Half of the above, in K: d[16,8] += a[16,8] · b[8,8]ᵀ.
__device__ __forceinline__ void mma_1688(float (&d)[4], uint32_t top, uint32_t bottom, uint32_t b, f16) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(top), "r"(bottom), "r"(b));
}
// And a quarter: d[8,8] += a[8,16] · b[8,16]ᵀ.
__device__ __forceinline__ void mma_8816(int& left, int& right, uint32_t a, uint32_t b) {
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.u8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"
                 : "+r"(left), "+r"(right)
                 : "r"(a), "r"(b));
}

#else

// Four products, one a quad pair: d[8,8] += a[8,4] · b[8,4]ᵀ, or · b[4,8].
#define DI_MMA_884(name, order)                                                                                  \
    __device__ __forceinline__ void name(float (&d)[2][4], uint32_t a0, uint32_t a1, uint32_t b0, uint32_t b1) { \
        asm volatile("mma.sync.aligned.m8n8k4.row." order                                                        \
                     ".f32.f16.f16.f32 {%0,%1,%2,%3,%4,%5,%6,%7}, {%8,%9}, {%10,%11}, "                          \
                     "{%0,%1,%2,%3,%4,%5,%6,%7};"                                                                \
                     : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]), "+f"(d[1][0]), "+f"(d[1][1]), \
                       "+f"(d[1][2]), "+f"(d[1][3])                                                              \
                     : "r"(a0), "r"(a1), "r"(b0), "r"(b1));                                                      \
    }
DI_MMA_884(mma_884, "col")
DI_MMA_884(mma_884_across, "row")
#undef DI_MMA_884

#endif

// Four 8 x 8 matrices of 16-bit elements; lane 8m + i brings the address of row i of matrix m.
__device__ __forceinline__ uint32_t shared_address(const void* p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
#if DI_ARCH >= 750
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
#else
    const int lane = static_cast<int>(threadIdx.x) & 31;
    const uint32_t mine = shared_address(row);
#pragma unroll
    for (int m = 0; m < 4; ++m) {
        const uint32_t from = __shfl_sync(0xffffffffu, mine, 8 * m + lane / 4) + 4 * (lane % 4);
        asm volatile("ld.shared.b32 %0, [%1];" : "=r"(r[m]) : "r"(from) : "memory");
    }
#endif
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
#if DI_ARCH >= 750
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
#else
    const int lane = static_cast<int>(threadIdx.x) & 31;
    const uint32_t mine = shared_address(row);
#pragma unroll
    for (int m = 0; m < 4; ++m) {
        uint16_t low, high;
        const uint32_t even = __shfl_sync(0xffffffffu, mine, 8 * m + 2 * (lane % 4)) + 2 * (lane / 4);
        const uint32_t odd = __shfl_sync(0xffffffffu, mine, 8 * m + 2 * (lane % 4) + 1) + 2 * (lane / 4);
        asm volatile("ld.shared.b16 %0, [%1];" : "=h"(low) : "r"(even) : "memory");
        asm volatile("ld.shared.b16 %0, [%1];" : "=h"(high) : "r"(odd) : "memory");
        r[m] = static_cast<uint32_t>(low) | static_cast<uint32_t>(high) << 16;
    }
#endif
}

// ---- asynchronous copies ----

__device__ __forceinline__ void cp_async16(void* to, const void* from, bool there = true) {
#if DI_ARCH >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
                 "r"(there ? 16 : 0)
                 : "memory");
#else
    *static_cast<uint4*>(to) = there ? *static_cast<const uint4*>(from) : make_uint4(0, 0, 0, 0);
#endif
}
__device__ __forceinline__ void cp_async_commit() {
#if DI_ARCH >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int N>
__device__ __forceinline__ void cp_async_wait() {
#if DI_ARCH >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

#endif  // DI_EMU

// ---- both ----

constexpr unsigned kWarp = 0xffffffffu;  // all lanes

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int bit = 16; bit; bit >>= 1) x += __shfl_xor_sync(kWarp, x, bit);
    return x;
}
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int bit = 16; bit; bit >>= 1) {
        const float other = __shfl_xor_sync(kWarp, x, bit);
        x = x > other ? x : other;
    }
    return x;
}

// ---- products of a warp on chips before SM80 ----

#if DI_ARCH < 800

// Where the chip lacks the instruction: every lane fetches the rows and columns of its four results from their owners.
template <class Acc, class Pair>
__device__ __forceinline__ void mma_by_shuffles(Acc (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                                Pair pair) {
    const int lane = static_cast<int>(threadIdx.x) & 31, g = lane & ~3, t = lane & 3;
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int owner = 0; owner < 4; ++owner) {
            const uint32_t top = __shfl_sync(0xffffffffu, a[2 * half], g + owner);
            const uint32_t bottom = __shfl_sync(0xffffffffu, a[2 * half + 1], g + owner);
            const uint32_t even = __shfl_sync(0xffffffffu, b[half], 8 * t + owner);
            const uint32_t odd = __shfl_sync(0xffffffffu, b[half], 8 * t + 4 + owner);
            d[0] = pair(top, even, d[0]);
            d[1] = pair(top, odd, d[1]);
            d[2] = pair(bottom, even, d[2]);
            d[3] = pair(bottom, odd, d[3]);
        }
}

#if DI_ARCH >= 750
__device__ __forceinline__ void mma_16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], f16 type) {
#pragma unroll
    for (int half = 0; half < 2; ++half) mma_1688(d, a[2 * half], a[2 * half + 1], b[half], type);
}
#endif
__device__ __forceinline__ void mma_16832(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if DI_ARCH >= 750
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int rows = 0; rows < 2; ++rows) mma_8816(d[2 * rows], d[2 * rows + 1], a[2 * half + rows], b[half]);
#else
    mma_by_shuffles(d, a, b, dp4a_signed_unsigned);
#endif
}

#endif  // DI_ARCH < 800
