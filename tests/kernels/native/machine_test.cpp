// Tests of what the runtime knows about the machine. `cores DIR`, `quota CGROUP MOUNTINFO` and `features` print what
// they find, for the caller to compare.
#include <initializer_list>

#include "check.h"
#include "cpu_info.h"
#include "measure.h"
#include "os.h"
#include "team.h"

using namespace di;

namespace {

constexpr size_t kMiB = size_t{1} << 20;

void memory() {
    Memory m;
    CHECK(!os_map(0, false, &m) && m.data == nullptr);
    CHECK(!os_map(SIZE_MAX, true, &m) && !os_map(SIZE_MAX / 8, false, &m) && m.data == nullptr);
    os_unmap(&m);
    for (const bool huge : {false, true}) {
        const size_t before = os_rss_bytes();
        CHECK(os_map(4096 * kMiB + 1, huge, &m));
        CHECK(m.bytes > 4096 * kMiB && m.bytes <= 4098 * kMiB);
        CHECK(reinterpret_cast<uintptr_t>(m.data) % (2 * kMiB) == 0);
        CHECK(os_rss_bytes() < before + 16 * kMiB);

        unsigned char* bytes = static_cast<unsigned char*>(m.data);
        CHECK(bytes[0] == 0 && bytes[m.bytes - 1] == 0);
        memset(bytes, 7, 64 * kMiB);
        CHECK(os_rss_bytes() > before + 48 * kMiB && os_peak_rss_bytes() > 48 * kMiB);
        os_discard(bytes, 64 * kMiB);
        CHECK(bytes[0] == 0 && bytes[64 * kMiB - 1] == 0);
        CHECK(os_rss_bytes() < before + 32 * kMiB);
        os_unmap(&m);
        CHECK(m.data == nullptr && m.bytes == 0);
    }
}

void discard_keeps_neighbours() {
    Memory m;
    CHECK(os_map(kMiB, false, &m));
    unsigned char* bytes = static_cast<unsigned char*>(m.data);
    memset(bytes, 7, kMiB);
    os_discard(bytes + 1, 512 * 1024);  // neither the first page nor the one that holds the end is whole
    CHECK(bytes[0] == 7 && bytes[1] == 7 && bytes[512 * 1024] == 7);
    CHECK(bytes[256 * 1024] == 0);
    os_discard(bytes + 700 * 1024 + 1, 100);  // inside one page: nothing to give back
    CHECK(bytes[700 * 1024 + 2] == 7);
    os_unmap(&m);
}

void machine() {
    const uint64_t wall = os_now_ns(), cpu = os_thread_cpu_ns();
    volatile unsigned sink = 0;
    for (unsigned i = 0; i < 1000000; i++) sink = sink + i;
    CHECK(os_now_ns() > wall && os_thread_cpu_ns() > cpu);

    int64_t total = 0, available = 0;
    os_memory(&total, &available);
    CHECK(available > 0 && available <= total && static_cast<int64_t>(os_rss_bytes()) < total);

    int cores[1024];
    const int count = os_cores(cores, 1024);
    CHECK(count >= 1 && os_usable_cpus() >= 1 && os_usable_cpus() <= count);
    CHECK(!os_pin_thread(-1) && !os_pin_thread(1 << 20));
    CHECK(os_pin_thread(cores[count - 1]));
    CHECK(os_cores(cores + 1, 1) == 1 && os_usable_cpus() == 1);
}

void processor() {
    const CpuInfo& info = cpu_info();
    CHECK(&info == &cpu_info());
    CHECK(info.vendor[0] != '\0' && info.model[0] != '\0');
#if defined(__x86_64__)
    if (info.has(Feature::AMX_BF16)) CHECK(info.has(Feature::AMX_TILE));
    if (info.has(Feature::AVX512BW)) CHECK(info.has(features(Feature::AVX512F, Feature::AVX2)));
    CHECK(!info.has(Feature::NEON) && !info.has(features(Feature::NEON, Feature::SVE)));
#else
    CHECK(info.has(Feature::NEON) && !info.has(Feature::AVX2));
#endif
}

void names() {
    char text[32];
    CHECK(features_string(0, text, sizeof text) == 0 && text[0] == '\0');
    CHECK(features_string(features(Feature::FMA, Feature::AVX2), text, sizeof text) == 8);
    CHECK(strcmp(text, "avx2 fma") == 0);
    CHECK(features_string(bit(Feature::SVE_I8MM), text, sizeof text) == 8 && strcmp(text, "sve_i8mm") == 0);
    for (size_t size = 0; size < 9; size++) {  // whole names only
        const size_t length = features_string(features(Feature::FMA, Feature::AVX2), text, size);
        CHECK(length == (size < 5 ? 0u : 4u));
    }
}

int64_t forgets_the_last_line(const void* p, size_t bytes) { return portable_sum(p, bytes - 64); }

void bandwidth() {
    Memory m;
    CHECK(os_map(kMiB, false, &m));
    int64_t* words = static_cast<int64_t*>(m.data);
    for (size_t i = 0; i < kMiB / 8; i++) words[i] = static_cast<int64_t>(i * i) - 77;
    int64_t sum = 0;
    for (size_t i = 0; i < 1024; i++) sum += words[i];
    CHECK(portable_sum(m.data, 8192) == sum && portable_sum(m.data, 0) == 0);
    os_unmap(&m);

    for (const int threads : {1, 3}) {
        Team* team = Team::create(threads, nullptr, 0);
        BandwidthProbe probe;
        CHECK(probe.measure(team) == 0);
        CHECK(probe.create(team, 5 * kMiB + 1));
        CHECK(probe.measure(team) > 0 && probe.measure(team) > 0);
        CHECK(probe.measure(team, forgets_the_last_line) == 0);
        probe.destroy();
        CHECK(probe.measure(team) == 0);
        CHECK(!probe.create(team, SIZE_MAX));
        CHECK(measure_read_bandwidth(team, 4 * kMiB, 3) > 0);
        CHECK(measure_read_bandwidth(team, 4 * kMiB, 3, forgets_the_last_line) == 0);
        CHECK(measure_read_bandwidth(team, 4 * kMiB, 0) == 0);
        delete team;
    }
}

constexpr Case kCases[] = {
    {"memory", memory},       {"discard_keeps_neighbours", discard_keeps_neighbours},
    {"names", names},         {"machine", machine},
    {"processor", processor}, {"bandwidth", bandwidth},
};

}  // namespace

int main(int argc, char** argv) {
    if (argc == 3 && strcmp(argv[1], "cores") == 0) {
        int cores[1024];
        const int count = os_cores(cores, 1024, argv[2]);
        for (int i = 0; i < count; i++) printf("%d ", cores[i]);
        return 0;
    }
    if (argc == 4 && strcmp(argv[1], "quota") == 0) return printf("%g", os_cpu_quota(argv[2], argv[3])), 0;
    if (argc == 2 && strcmp(argv[1], "features") == 0) {
        char text[512];
        features_string(cpu_info().features, text, sizeof text);
        return puts(text), 0;
    }
    return run_case(kCases, argc == 2 ? argv[1] : "");
}
