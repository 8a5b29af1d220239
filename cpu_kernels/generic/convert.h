// Conversions between arrays of fp32, fp16 and bf16, and the benchmark's read loop.
#pragma once
#include "../kernels.h"
#include "inline.h"

namespace di {
namespace {

DI_INLINE Vec load_as(DType type, const void* p) {
    switch (type) {
        case DType::F16: return Vec::load_f16(static_cast<const f16*>(p));
        case DType::BF16: return Vec::load_bf16(static_cast<const bf16*>(p));
        default: return Vec::load(static_cast<const float*>(p));
    }
}

DI_INLINE void store_as(DType type, void* p, Vec v) {
    switch (type) {
        case DType::F16: return v.store_f16(static_cast<f16*>(p));
        case DType::BF16: return v.store_bf16(static_cast<bf16*>(p));
        default: return v.store(static_cast<float*>(p));
    }
}

// Source and destination need no alignment. Equal types copy bits; narrowing rounds to nearest even.
void convert(void* dst, DType dst_type, const void* src, DType src_type, size_t n) {
    const size_t dst_size = size_of(dst_type), src_size = size_of(src_type);
    if (dst_type == src_type) {
        __builtin_memcpy(dst, src, n * src_size);
        return;
    }
    for (size_t i = 0; i < n; i += 16) {
        const size_t count = n - i < 16 ? n - i : 16;
        alignas(64) char from[64] = {}, to[64];
        __builtin_memcpy(from, static_cast<const char*>(src) + i * src_size, count * src_size);
        store_as(dst_type, to, load_as(src_type, from));
        __builtin_memcpy(static_cast<char*>(dst) + i * dst_size, to, count * dst_size);
    }
}

// Sums all bytes as 64-bit words, the odd end excepted. Hardware prefetchers alone do best on one plain stream.
int64_t read_sum(const void* p, size_t bytes) {
    constexpr size_t kBlock = 512;
    typedef uint64_t Line __attribute__((vector_size(64), aligned(8), may_alias));
    Line sum[4] = {};
    const char* at = static_cast<const char*>(p);
    for (const char* end = at + bytes / kBlock * kBlock; at < end; at += kBlock) {
        for (size_t i = 0; i < kBlock / 64; ++i) {
            sum[i % 4] += *reinterpret_cast<const Line*>(at + 64 * i);
        }
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
