// The tiers of this build, best first, and which of them this machine can run.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../kernels.h"

namespace di {

struct Tier {
    const char* name;
    uint64_t needs;  // bits of cpu_info.h
    const KernelTable* (*table)();
};

// The tier called `isa`, or the best one that the machine runs where `isa` is null. Null, with the reason in `why`, for
// an unknown name or missing processor features: a tier is never guessed.
const Tier* find_tier(const char* isa, char* why, size_t why_bytes);

// The tiers, best first; `count` receives how many.
const Tier* all_tiers(int* count);

bool tier_runs_here(const Tier& tier);

}  // namespace di
