// What a program must satisfy before its first step: afterwards nothing looks at shapes again.
#pragma once
#include <vector>

#include "weight.h"

namespace di {

constexpr int kMaxHead = 256;
constexpr int kMaxExperts = 1024;
constexpr int kMaxTop = 256;  // alternatives a row that the sampler can report

int check_limits(const di_program_desc& desc, Why why);
int check_slots(const di_program_desc& desc, Why why);
int check_cache(const di_kv_desc& kv, Why why);
int check_instr(const di_instr& in, bool in_tail, const std::vector<di_slot>& slots, const std::vector<Weight>& weights,
                const di_kv_desc& kv, int experts_per_token, Why why);

// The most rows that a slot has.
int64_t most_rows(const di_slot& slot, const di_program_desc& program);

// What a step must satisfy: `last_tokens` sequence slots, blocks of the cache (0 layers: none is looked at) and of the
// host.
struct StepLimits {
    int tokens, seqs, last_tokens, host_blocks;
    di_kv_desc kv;
};
int check_step(const di_step& step, const StepLimits& limits, Why why);

}  // namespace di
