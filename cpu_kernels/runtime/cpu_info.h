// What the processor can do, and the system lets it do.
#pragma once

#include <cstddef>
#include <cstdint>

namespace di {

enum class Feature : uint32_t {
    // x86-64
    AVX2,
    FMA,
    F16C,
    AVX512F,
    AVX512BW,
    AVX512DQ,
    AVX512VL,
    AVX512_VNNI,
    AVX512_BF16,
    AVX512_FP16,
    AVX_VNNI,
    AMX_TILE,
    AMX_BF16,
    AMX_INT8,
    // aarch64
    NEON,
    FP16,
    DOTPROD,
    BF16,
    I8MM,
    SVE,
    SVE2,
    SVE_BF16,
    SVE_I8MM,
    Count
};

constexpr uint64_t bit(Feature f) { return uint64_t{1} << static_cast<uint32_t>(f); }

// A set of features, as in `has(features(Feature::AVX2, Feature::FMA))`.
template <class... F>
constexpr uint64_t features(F... f) {
    return (uint64_t{0} | ... | bit(f));
}

struct CpuInfo {
    uint64_t features = 0;  // one bit(Feature) each: present, and its registers enabled by the system
    char vendor[16] = "";
    char model[64] = "";
    uint32_t l1d = 0, l2 = 0, l3 = 0;  // bytes of the caches that a core reaches, 0 if unknown; cores share an l3

    bool has(uint64_t set) const { return (features & set) == set; }
    bool has(Feature f) const { return has(bit(f)); }
};

// Probed at the first call, from any thread; that call also asks the system for AMX.
const CpuInfo& cpu_info();

// Writes the lower-case names of a set, separated by spaces, cut where `size` ends. Returns the length written.
size_t features_string(uint64_t features, char* out, size_t size);

}  // namespace di
