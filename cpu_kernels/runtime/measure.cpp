#include "measure.h"

#include <algorithm>
#include <new>

namespace di {
namespace {

// Contiguous parts of whole cache lines, as the weights of a layer are shared out.
struct Part {
    char* data;
    size_t bytes;
};

Part part_of(const Memory& memory, int thread, int threads) {
    constexpr size_t kLine = 64;
    const size_t lines = memory.bytes / kLine, t = static_cast<size_t>(thread), n = static_cast<size_t>(threads);
    const size_t begin = lines * t / n, end = lines * (t + 1) / n;
    return {static_cast<char*>(memory.data) + begin * kLine, (end - begin) * kLine};
}

// Untouched memory would be read from the one page of zeros, out of the cache.
void fill_part(void* ctx, int thread, int threads) {
    const Part part = part_of(*static_cast<const Memory*>(ctx), thread, threads);
    std::fill_n(reinterpret_cast<int64_t*>(part.data), part.bytes / sizeof(int64_t), int64_t{1});
}

struct Pass {
    const Memory* memory;
    SumFn sum;
    std::atomic<int64_t> total{0};
};

void read_part(void* ctx, int thread, int threads) {
    Pass* pass = static_cast<Pass*>(ctx);
    const Part part = part_of(*pass->memory, thread, threads);
    pass->total.fetch_add(pass->sum(part.data, part.bytes), std::memory_order_relaxed);
}

}  // namespace

int64_t portable_sum(const void* p, size_t bytes) {
    const uint64_t* words = static_cast<const uint64_t*>(p);
    uint64_t sums[8] = {};
    for (size_t i = 0; i < bytes / sizeof *words; i += 8) {
        for (size_t j = 0; j < 8; j++) sums[j] += words[i + j];
    }
    uint64_t sum = 0;
    for (const uint64_t s : sums) sum += s;
    return static_cast<int64_t>(sum);
}

bool BandwidthProbe::create(Team* team, size_t bytes) {
    destroy();
    if (!os_map(bytes, true, &memory_)) return false;
    if (team->run(fill_part, &memory_)) return true;
    destroy();
    return false;
}

double BandwidthProbe::measure(Team* team, SumFn sum) {
    Pass pass{&memory_, sum};
    const uint64_t begin = os_now_ns();
    if (memory_.data == nullptr || !team->run(read_part, &pass)) return 0;
    const uint64_t elapsed = os_now_ns() - begin;
    const bool complete = pass.total.load(std::memory_order_relaxed) == static_cast<int64_t>(memory_.bytes / 8);
    return complete && elapsed > 0 ? static_cast<double>(memory_.bytes) * 1e9 / static_cast<double>(elapsed) : 0;
}

void BandwidthProbe::destroy() { os_unmap(&memory_); }

double measure_read_bandwidth(Team* team, size_t bytes, int reps, SumFn sum) {
    double* passes = reps > 0 ? new (std::nothrow) double[static_cast<size_t>(reps)] : nullptr;
    double median = 0;
    BandwidthProbe probe;
    if (passes != nullptr && probe.create(team, bytes)) {
        for (int i = 0; i < reps; i++) passes[i] = probe.measure(team, sum);
        std::nth_element(passes, passes + reps / 2, passes + reps);
        median = passes[reps / 2];
    }
    delete[] passes;
    return median;
}

}  // namespace di
