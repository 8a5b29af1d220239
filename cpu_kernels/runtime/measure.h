// The machine's sequential read bandwidth, as far as a thread team reaches it: the roof of decoding.
#pragma once

#include <cstddef>
#include <cstdint>

#include "os.h"
#include "team.h"

namespace di {

// Reads `bytes` (a multiple of 64, from a 64-byte boundary) and returns the wrapping sum of its 64-bit words.
using SumFn = int64_t (*)(const void* p, size_t bytes);

int64_t portable_sum(const void* p, size_t bytes);

// Memory to read from, kept between measurements so that a benchmark can alternate them with its own work.
class BandwidthProbe {
  public:
    BandwidthProbe() = default;
    ~BandwidthProbe() { destroy(); }
    BandwidthProbe(const BandwidthProbe&) = delete;
    BandwidthProbe& operator=(const BandwidthProbe&) = delete;

    // Maps 2 MB pages and lets each thread fill the part that it will read. False: no memory, or the team cannot run.
    bool create(Team* team, size_t bytes);

    // One pass of the same team over all of it, in bytes per second. 0: not created, the team cannot run, or `sum` gave
    // a wrong sum and so did not read everything.
    double measure(Team* team, SumFn sum = portable_sum);

    void destroy();

  private:
    Memory memory_;
};

// The median of `reps` passes over `bytes` of fresh memory, in bytes per second; 0 where it cannot be measured.
double measure_read_bandwidth(Team* team, size_t bytes, int reps, SumFn sum = portable_sum);

}  // namespace di
