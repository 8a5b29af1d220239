#include "probe.h"

#include <cstdio>
#include <new>

#include "cpu_info.h"
#include "os.h"

namespace di {

MachineProbe* MachineProbe::create(const char* isa, int threads, char* why, size_t why_bytes) {
    const Tier* tier = find_tier(isa, why, why_bytes);
    if (!tier) return nullptr;
    Team* team = Team::create(threads > 0 ? threads : os_usable_cpus(), why, why_bytes);
    if (!team) return nullptr;
    auto* probe = new (std::nothrow) MachineProbe(tier->table(), team);
    if (!probe) delete team;
    return probe;
}

MachineProbe::~MachineProbe() {
    memory_.destroy();
    delete team_;
}

bool MachineProbe::map(size_t bytes) { return memory_.create(team_, bytes); }

double MachineProbe::read_bandwidth() {
    TurnGuard turn(team_->threads());
    return memory_.measure(team_, kernels_->read_sum);
}

double MachineProbe::matrix_peak(int64_t rounds) {
    if (!kernels_->matrix_peak) return 0.0;
    struct Context {
        const KernelTable* kernels;
        int64_t rounds;
        double operations;
    } context{kernels_, rounds, 0.0};
    const auto work = [](void* opaque, int thread, int) {
        auto& c = *static_cast<Context*>(opaque);
        const double done = c.kernels->matrix_peak(c.rounds);
        if (thread == 0) c.operations = done;
        if (c.kernels->release) c.kernels->release();
    };
    TurnGuard turn(team_->threads());
    const uint64_t start = os_now_ns();
    if (!team_->run(work, &context)) return 0.0;
    return context.operations * team_->threads() / (static_cast<double>(os_now_ns() - start) * 1e-9);
}

size_t describe_tiers(char* out, size_t size) {
    int count = 0;
    const Tier* tiers = all_tiers(&count);
    size_t used = 0;
    for (int i = 0; i < count; ++i) {
        char missing[512];
        features_string(tiers[i].needs & ~cpu_info().features, missing, sizeof missing);
        const int n = std::snprintf(out + used, size - used, "%s|%s\n", tiers[i].name, missing);
        if (n < 0 || used + static_cast<size_t>(n) >= size) break;
        used += static_cast<size_t>(n);
    }
    return used;
}

size_t describe_cpu(char* out, size_t size) {
    const CpuInfo& cpu = cpu_info();
    char features[1024];
    features_string(cpu.features, features, sizeof features);
    const int n = std::snprintf(out, size, "vendor=%s\nmodel=%s\nfeatures=%s\nl1d=%u\nl2=%u\nl3=%u\n", cpu.vendor,
                                cpu.model, features, cpu.l1d, cpu.l2, cpu.l3);
    return n < 0 ? 0 : static_cast<size_t>(n);
}

size_t resident_bytes() { return os_rss_bytes(); }
size_t peak_resident_bytes() { return os_peak_rss_bytes(); }
int usable_cpus() { return os_usable_cpus(); }

}  // namespace di
