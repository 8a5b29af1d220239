// Conversions between arrays of fp32, fp16 and bf16, and the benchmark's read loop.
#pragma once
#include "../kernels.h"
#include "inline.h"

namespace di {
namespace {

struct Floats {
    using T = float;
    static DI_INLINE Vec load(const T* p) { return Vec::load(p); }
    static DI_INLINE void store(T* p, Vec v) { v.store(p); }
};
struct Halves {
    using T = f16;
    static DI_INLINE Vec load(const T* p) { return Vec::load_f16(p); }
    static DI_INLINE void store(T* p, Vec v) { v.store_f16(p); }
};
struct Brains {
    using T = bf16;
    static DI_INLINE Vec load(const T* p) { return Vec::load_bf16(p); }
    static DI_INLINE void store(T* p, Vec v) { v.store_bf16(p); }
};

// Files give no alignment: elements pass through aligned blocks of 16.
template <class To, class From>
void convert_as(char* dst, const char* src, size_t n) {
    alignas(64) typename From::T from[16] = {};
    alignas(64) typename To::T to[16];
    for (; n >= 16; n -= 16, src += sizeof from, dst += sizeof to) {
        __builtin_memcpy(from, src, sizeof from);
        To::store(to, From::load(from));
        __builtin_memcpy(dst, to, sizeof to);
    }
    __builtin_memcpy(from, src, n * sizeof from[0]);
    To::store(to, From::load(from));
    __builtin_memcpy(dst, to, n * sizeof to[0]);
}

template <class To>
void convert_to(char* dst, const char* src, DType src_type, size_t n) {
    switch (src_type) {
        case DType::F16:
            return convert_as<To, Halves>(dst, src, n);
        case DType::BF16:
            return convert_as<To, Brains>(dst, src, n);
        default:
            return convert_as<To, Floats>(dst, src, n);
    }
}

// Equal types copy bits; narrowing rounds to nearest even.
void convert(void* dst, DType dst_type, const void* src, DType src_type, size_t n) {
    char* to = static_cast<char*>(dst);
    const char* from = static_cast<const char*>(src);
    if (dst_type == src_type) {
        __builtin_memcpy(to, from, n * size_of(src_type));
        return;
    }
    switch (dst_type) {
        case DType::F16:
            return convert_to<Halves>(to, from, src_type, n);
        case DType::BF16:
            return convert_to<Brains>(to, from, src_type, n);
        default:
            return convert_to<Floats>(to, from, src_type, n);
    }
}

// Sums all bytes as 64-bit words, the odd end excepted. Hardware prefetchers alone do best on one plain stream.
int64_t read_sum(const void* p, size_t bytes) {
    constexpr size_t kBlock = 512;
    typedef uint64_t Line __attribute__((vector_size(64), aligned(8), may_alias));
    Line sum[4] = {};
    const char* at = static_cast<const char*>(p);
    for (const char* end = at + bytes / kBlock * kBlock; at < end; at += kBlock) {
        for (size_t i = 0; i < kBlock / 64; ++i) { sum[i % 4] += *reinterpret_cast<const Line*>(at + 64 * i); }
    }
    uint64_t total = 0;
    for (int i = 0; i < 8; ++i) total += sum[0][i] + sum[1][i] + sum[2][i] + sum[3][i];
    for (const char* end = static_cast<const char*>(p) + bytes / 8 * 8; at < end; at += 8) {
        uint64_t word;
        __builtin_memcpy(&word, at, 8);
        total += word;
    }
    return static_cast<int64_t>(total);
}

}  // namespace
}  // namespace di
