// What the benchmark and `info` ask of the machine.
#pragma once

#include <cstddef>
#include <cstdint>

#include "measure.h"
#include "team.h"
#include "tier.h"

namespace di {

// A thread team like an engine's, for measurements that alternate with the engine's own work.
class MachineProbe {
  public:
    static MachineProbe* create(const char* isa, int threads, char* why, size_t why_bytes);
    ~MachineProbe();
    MachineProbe(const MachineProbe&) = delete;
    MachineProbe& operator=(const MachineProbe&) = delete;

    bool map(size_t bytes);              // memory for read_bandwidth, in 2 MB pages
    double read_bandwidth();             // bytes per second of one pass by all threads
    double matrix_peak(int64_t rounds);  // operations per second of all threads, 0 without a matrix unit

  private:
    MachineProbe(const KernelTable* kernels, Team* team) : kernels_(kernels), team_(team) {}
    const KernelTable* kernels_;
    Team* team_;
    BandwidthProbe memory_;
};

// One line a tier, best first: its name, '|', and the processor features that it misses here.
size_t describe_tiers(char* out, size_t size);
// Lines of key=value: vendor, model, features, l1d, l2, l3.
size_t describe_cpu(char* out, size_t size);
size_t resident_bytes();
size_t peak_resident_bytes();
int usable_cpus();

}  // namespace di
