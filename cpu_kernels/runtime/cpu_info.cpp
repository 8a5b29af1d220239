#include "cpu_info.h"

#include <cstdio>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "os.h"

namespace di {
namespace {

constexpr const char* kNames[] = {"avx2",     "fma",         "f16c",        "avx512f",     "avx512bw", "avx512dq",
                                  "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni", "amx_tile",
                                  "amx_bf16", "amx_int8",    "neon",        "fp16",        "dotprod",  "bf16",
                                  "i8mm",     "sve",         "sve2",        "sve_bf16",    "sve_i8mm"};
static_assert(sizeof kNames / sizeof *kNames == static_cast<size_t>(Feature::Count), "one name a feature, in order");

// A hardware bit and the feature it stands for.
struct Bit {
    int position;
    Feature feature;
};

template <size_t N>
uint64_t decode(uint64_t word, const Bit (&bits)[N]) {
    uint64_t set = 0;
    for (const Bit& b : bits) {
        if (word >> b.position & 1) set |= bit(b.feature);
    }
    return set;
}

void probe_processor(CpuInfo* info);

CpuInfo probe() {
    CpuInfo info;
    probe_processor(&info);
    if (info.l1d == 0) info.l1d = os_cache_bytes(1);
    if (info.l2 == 0) info.l2 = os_cache_bytes(2);
    if (info.l3 == 0) info.l3 = os_cache_bytes(3);
    return info;
}

}  // namespace

const CpuInfo& cpu_info() {
    static const CpuInfo info = probe();
    return info;
}

size_t features_string(uint64_t features, char* out, size_t size) {
    if (size == 0) return 0;
    size_t length = 0;
    out[0] = '\0';
    for (uint32_t i = 0; i < static_cast<uint32_t>(Feature::Count); i++) {
        if ((features >> i & 1) == 0) continue;
        const int n = snprintf(out + length, size - length, "%s%s", length > 0 ? " " : "", kNames[i]);
        if (n < 0 || static_cast<size_t>(n) >= size - length) {
            out[length] = '\0';  // no half names
            break;
        }
        length += static_cast<size_t>(n);
    }
    return length;
}

namespace {

#if defined(__x86_64__)

// Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix E.

struct Registers {
    uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(uint32_t leaf, uint32_t subleaf) {
    Registers r;
    __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);  // zeros above the highest leaf
    return r;
}

// The register states that the system saves on a context switch; only these may be used.
uint64_t enabled_states() {
    constexpr uint32_t kOsxsave = 1u << 27;
    if ((cpuid(1, 0).ecx & kOsxsave) == 0) return 0;
    uint32_t low, high;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low | uint64_t{high} << 32;
}

uint64_t probe_features() {
    constexpr uint64_t kYmm = 0x6, kZmm = 0xe6, kTile = 0x60000;  // XCR0[2:1], with [7:5], and [18:17]
    const Registers one = cpuid(1, 0), seven = cpuid(7, 0);
    const Registers seven_one = seven.eax >= 1 ? cpuid(7, 1) : Registers{};
    const uint64_t states = enabled_states();
    uint64_t set = 0;
    if ((states & kYmm) == kYmm) {
        set |= decode(one.ecx, {{12, Feature::FMA}, {29, Feature::F16C}});
        set |= decode(seven.ebx, {{5, Feature::AVX2}});
        set |= decode(seven_one.eax, {{4, Feature::AVX_VNNI}});
    }
    if ((states & kZmm) == kZmm) {
        set |=
            decode(seven.ebx,
                   {{16, Feature::AVX512F}, {17, Feature::AVX512DQ}, {30, Feature::AVX512BW}, {31, Feature::AVX512VL}});
        set |= decode(seven.ecx, {{11, Feature::AVX512_VNNI}});
        set |= decode(seven.edx, {{23, Feature::AVX512_FP16}});
        set |= decode(seven_one.eax, {{5, Feature::AVX512_BF16}});
    }
    if ((states & kTile) == kTile) {
        const uint64_t amx =
            decode(seven.edx, {{22, Feature::AMX_BF16}, {24, Feature::AMX_TILE}, {25, Feature::AMX_INT8}});
        if ((amx & bit(Feature::AMX_TILE)) != 0 && os_allow_amx()) set |= amx;
    }
    return set;
}

// Leaf 4 (Intel) and 0x8000001D (AMD) list the caches in the same form.
void probe_caches(CpuInfo* info, uint32_t leaf) {
    for (uint32_t i = 0; i < 16; i++) {
        const Registers r = cpuid(leaf, i);
        const uint32_t type = r.eax & 31, level = r.eax >> 5 & 7;
        if (type == 0) return;
        if (type == 2) continue;  // instructions
        const uint32_t ways = (r.ebx >> 22) + 1, partitions = (r.ebx >> 12 & 1023) + 1, line = (r.ebx & 4095) + 1;
        const uint32_t bytes = ways * partitions * line * (r.ecx + 1);
        if (level == 1) info->l1d = bytes;
        if (level == 2) info->l2 = bytes;
        if (level == 3) info->l3 = bytes;
    }
}

void probe_processor(CpuInfo* info) {
    const Registers zero = cpuid(0, 0);
    memcpy(info->vendor, &zero.ebx, 4);
    memcpy(info->vendor + 4, &zero.edx, 4);
    memcpy(info->vendor + 8, &zero.ecx, 4);
    info->vendor[12] = '\0';

    char brand[49] = "";
    for (uint32_t i = 0; i < 3; i++) {
        const Registers r = cpuid(0x80000002 + i, 0);
        memcpy(brand + 16 * i, &r, 16);
    }
    snprintf(info->model, sizeof info->model, "%s", brand + strspn(brand, " "));

    constexpr uint32_t kTopologyExtensions = 1u << 22;
    const bool amd = (cpuid(0x80000001, 0).ecx & kTopologyExtensions) != 0;
    probe_caches(info, amd ? 0x8000001D : 4);
    info->features = probe_features();
}

#elif defined(__aarch64__)

// Linux, Documentation/arch/arm64/elf_hwcaps.rst; the bits are those of <asm/hwcap.h>.
void probe_processor(CpuInfo* info) {
    uint64_t hwcap, hwcap2;
    os_hwcaps(&hwcap, &hwcap2);
    info->features =
        decode(hwcap, {{1, Feature::NEON}, {10, Feature::FP16}, {20, Feature::DOTPROD}, {22, Feature::SVE}});
    info->features |= decode(hwcap2, {{1, Feature::SVE2},
                                      {9, Feature::SVE_I8MM},
                                      {12, Feature::SVE_BF16},
                                      {13, Feature::I8MM},
                                      {14, Feature::BF16}});
    snprintf(info->vendor, sizeof info->vendor, "ARM");
    snprintf(info->model, sizeof info->model, "aarch64");
}

#endif

}  // namespace
}  // namespace di
