// CUDA C++ for g++: qualifiers, built-in variables, vector types, warp operations, atomics and intrinsics.
#pragma once
#include <algorithm>
#include <cmath>

#include "emulator.h"

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)
#define __restrict__ __restrict
#define __shared__ static  // prefer SHARED: this one is neither poisoned nor guarded

#define SHARED(T, name, count) T* const name = static_cast<T*>(emu::the_machine.static_shared(sizeof(T) * (count)))
#define SHARED_DYNAMIC(T, name) T* const name = static_cast<T*>(emu::the_machine.dynamic_shared())
// Lets the stand-in driver find the kernel and copy its arguments, as a driver copies them when a launch is captured.
#define EXPORT_KERNEL(kernel)                                                                                     \
    extern "C" __attribute__((visibility("default"))) int emu_sizes_##kernel(int* sizes) {                        \
        return emu::parameter_sizes(&kernel, sizes);                                                              \
    }                                                                                                             \
    extern "C" __attribute__((visibility("default"))) void emu_run_##kernel(const unsigned* shape, size_t shared, \
                                                                            void** parameters) {                  \
        emu::invoke(#kernel, &kernel, shape, shared, parameters);                                                 \
    }

#define threadIdx (emu::the_machine.current->thread)
#define blockIdx (emu::the_machine.block)
#define blockDim (emu::the_machine.block_dim)
#define gridDim (emu::the_machine.grid_dim)
constexpr int warpSize = emu::kLanes;

struct alignas(8) int2 {
    int x, y;
};
struct alignas(16) int4 {
    int x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) double2 {
    double x, y;
};
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

// ---- barriers and warps ----

constexpr unsigned kAllLanes = 0xffffffffu;

namespace emu {

struct Nothing {};

inline void whole_warp(unsigned mask) {
    if (mask != kAllLanes) the_machine.die("warp operations take all 32 lanes");
}

// Lane i gets what lane source(i) holds; lanes outside of the warp give the own value.
template <class T, class F>
T shuffle(const void* operation, unsigned mask, const T& value, F source) {
    struct In {
        T value;
        int source;
    };
    whole_warp(mask);
    const int lane = the_machine.current->index % kLanes;
    return the_machine.exchange<In, T>(operation, In{value, source(lane)}, [](const In* in, T* out) {
        for (int i = 0; i < kLanes; ++i) out[i] = in[in[i].source & (kLanes - 1)].value;
    });
}

inline const char kShuffle = 0, kBallot = 0, kSync = 0;

}  // namespace emu

inline void __syncthreads() { emu::the_machine.block_barrier(); }
inline int __syncthreads_count(int p) { return emu::the_machine.block_sum(p != 0); }
inline int __syncthreads_or(int p) { return emu::the_machine.block_sum(p != 0) != 0; }
inline int __syncthreads_and(int p) { return emu::the_machine.block_sum(p == 0) == 0; }
inline void __syncwarp(unsigned mask = kAllLanes) {
    emu::whole_warp(mask);
    emu::the_machine.exchange<emu::Nothing, emu::Nothing>(&emu::kSync, {}, [](const emu::Nothing*, emu::Nothing*) {});
}
inline void __threadfence() {}
inline void __threadfence_block() {}

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = emu::kLanes) {
    return emu::shuffle(&emu::kShuffle, mask, value,
                        [=](int me) { return (me & ~(width - 1)) | (lane & (width - 1)); });
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int = emu::kLanes) {
    return emu::shuffle(&emu::kShuffle, mask, value, [=](int me) { return me ^ bits; });
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, int by, int width = emu::kLanes) {
    return emu::shuffle(&emu::kShuffle, mask, value,
                        [=](int me) { return (me & (width - 1)) + by < width ? me + by : me; });
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, int by, int width = emu::kLanes) {
    return emu::shuffle(&emu::kShuffle, mask, value, [=](int me) { return (me & (width - 1)) >= by ? me - by : me; });
}
inline unsigned __ballot_sync(unsigned mask, int p) {
    emu::whole_warp(mask);
    return emu::the_machine.exchange<int, unsigned>(&emu::kBallot, p, [](const int* in, unsigned* out) {
        unsigned bits = 0;
        for (int i = 0; i < emu::kLanes; ++i) bits |= unsigned{in[i] != 0} << i;
        std::fill(out, out + emu::kLanes, bits);
    });
}
inline int __any_sync(unsigned mask, int p) { return __ballot_sync(mask, p) != 0; }
inline int __all_sync(unsigned mask, int p) { return __ballot_sync(mask, p) == kAllLanes; }
inline unsigned __activemask() { return kAllLanes; }

// ---- atomics ----

template <class T, class U>
T atomicAdd(T* at, U value) {
    const T old = *at;
    *at = static_cast<T>(old + value);
    return old;
}
template <class T, class U>
T atomicExch(T* at, U value) {
    return std::exchange(*at, static_cast<T>(value));
}
template <class T, class U>
T atomicMax(T* at, U value) {
    const T old = *at;
    *at = std::max(old, static_cast<T>(value));
    return old;
}
template <class T, class U>
T atomicMin(T* at, U value) {
    const T old = *at;
    *at = std::min(old, static_cast<T>(value));
    return old;
}
template <class T, class U>
T atomicOr(T* at, U value) {
    const T old = *at;
    *at = static_cast<T>(old | static_cast<T>(value));
    return old;
}
template <class T, class U>
T atomicAnd(T* at, U value) {
    const T old = *at;
    *at = static_cast<T>(old & static_cast<T>(value));
    return old;
}
template <class T>
T atomicCAS(T* at, T expected, T value) {
    const T old = *at;
    if (old == expected) *at = value;
    return old;
}

// ---- intrinsics ----

template <class To, class From>
To emu_bits(From x) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &x, sizeof to);
    return to;
}
inline float __int_as_float(int x) { return emu_bits<float>(x); }
inline int __float_as_int(float x) { return emu_bits<int>(x); }
inline float __uint_as_float(unsigned x) { return emu_bits<float>(x); }
inline unsigned __float_as_uint(float x) { return emu_bits<unsigned>(x); }
inline double __longlong_as_double(long long x) { return emu_bits<double>(x); }
inline long long __double_as_longlong(double x) { return emu_bits<long long>(x); }
template <class T>
T __ldg(const T* p) {
    return *p;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __brev(unsigned x) {
    unsigned r = 0;
    for (int i = 0; i < 32; ++i) r |= (x >> i & 1u) << (31 - i);
    return r;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>((uint64_t{a} * b) >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return static_cast<unsigned long long>((static_cast<unsigned __int128>(a) * b) >> 64);
}
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline int __float2int_rn(float x) { return static_cast<int>(std::nearbyint(x)); }
inline int __float2int_rz(float x) { return static_cast<int>(x); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline long long __double2ll_rn(double x) { return static_cast<long long>(std::nearbyint(x)); }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
template <class T>
T min(T a, T b) {
    return a < b ? a : b;
}
template <class T>
T max(T a, T b) {
    return a > b ? a : b;
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    const uint64_t bytes = uint64_t{b} << 32 | a;
    unsigned r = 0;
    for (int i = 0; i < 4; ++i) {
        const unsigned pick = selector >> (4 * i) & 0xF;
        unsigned byte = static_cast<unsigned>(bytes >> (8 * (pick & 7))) & 0xFF;
        if (pick & 8) byte = byte & 0x80 ? 0xFF : 0;
        r |= byte << (8 * i);
    }
    return r;
}
