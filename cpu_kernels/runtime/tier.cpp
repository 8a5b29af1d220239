#include "tier.h"

#include <cstdio>
#include <cstring>

#include "cpu_info.h"

namespace di {

namespace {

#if defined(__x86_64__)
constexpr uint64_t kAvx2 = features(Feature::AVX2, Feature::FMA, Feature::F16C);
constexpr uint64_t kAvx512 =
    kAvx2 | features(Feature::AVX512F, Feature::AVX512BW, Feature::AVX512DQ, Feature::AVX512VL);
constexpr uint64_t kAvxVnni = kAvx2 | features(Feature::AVX_VNNI);
constexpr uint64_t kAvx512Vnni = kAvx512 | features(Feature::AVX512_VNNI);
constexpr uint64_t kAvx512Bf16 = kAvx512Vnni | features(Feature::AVX512_BF16);
constexpr uint64_t kAmx = kAvx512Bf16 | features(Feature::AMX_TILE, Feature::AMX_BF16, Feature::AMX_INT8);

constexpr Tier kTiers[] = {
    {"amx", kAmx, amx_table},  // the best first
    {"avx512bf16", kAvx512Bf16, avx512bf16_table},
    {"avx512vnni", kAvx512Vnni, avx512vnni_table},
    {"avx512", kAvx512, avx512_table},
    {"avxvnni", kAvxVnni, avxvnni_table},
    {"avx2", kAvx2, avx2_table},
    {"scalar", 0, scalar_table},
};
#else
constexpr Tier kTiers[] = {{"scalar", 0, scalar_table}};
#endif
constexpr int kTierCount = sizeof(kTiers) / sizeof(kTiers[0]);

}  // namespace

const Tier* all_tiers(int* count) {
    *count = kTierCount;
    return kTiers;
}

bool tier_runs_here(const Tier& tier) { return cpu_info().has(tier.needs); }

const Tier* find_tier(const char* isa, char* why, size_t why_bytes) {
    for (const Tier& tier : kTiers) {
        if (isa && std::strcmp(isa, tier.name) != 0) continue;
        if (tier_runs_here(tier)) return &tier;
        if (!isa) continue;
        char missing[256];
        features_string(tier.needs & ~cpu_info().features, missing, sizeof missing);
        std::snprintf(why, why_bytes, "tier '%s' needs processor features that this machine lacks: %s", isa, missing);
        return nullptr;
    }
    std::snprintf(why, why_bytes,
                  "unknown tier '%s'; this build has amx, avx512bf16, avx512vnni, avx512, avxvnni, avx2 and scalar on "
                  "x86-64, scalar elsewhere",
                  isa);
    return nullptr;
}

}  // namespace di
