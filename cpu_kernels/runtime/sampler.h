// Picks a token from one row of logits. docs/sampling.md states the order of the steps and every formula; the token is
// the same on every tier.
#pragma once
#include <memory>

#include "../../dashinfer_lite/include/dashinfer_device.h"
#include "../kernels.h"

namespace di {

// Work memory of one thread. Pages are touched only by the options that need them.
class SamplerScratch {
  public:
    static constexpr int kBlock = kLogitBlock;            // of the maxima and of the masses
    static constexpr int kRows = 8;                       // whose maxima are found together
    static constexpr int kMaxVocab = (1 << 20) - kBlock;  // the mass of a row stays below 2^64

    // False: no memory, or a vocabulary outside [1, kMaxVocab].
    bool create(int vocab, int max_top);

    int max_top = 0, blocks = 0;
    std::unique_ptr<float[]> row;            // [V] the edited logits, later the candidates' logits
    std::unique_ptr<int32_t[]> ids;          // [V] the candidates' tokens
    std::unique_ptr<float[]> weights;        // [V padded to a block] their unnormalized probabilities
    std::unique_ptr<uint64_t[]> keys;        // [V] what is selected from
    std::unique_ptr<uint32_t[]> counts;      // [V] occurrences in the history; all zero between rows
    std::unique_ptr<float[]> raw_maxima;     // [kRows, blocks]
    std::unique_ptr<float[]> maxima, order;  // [blocks]
    std::unique_ptr<uint64_t[]> masses;      // [blocks]
};

struct SampleResult {
    int32_t token;        // 0, which is always a token, where status is not DI_SAMPLE_OK
    int32_t status;       // di_sample_status
    float logprob;        // of the token in the raw distribution; 0 when nothing was asked for
    int32_t rank;         // 1 + tokens before it in the order (logit descending, id ascending); 0 likewise
    int32_t* top_ids;     // [max_top] memory of the caller's, or null; -1 past the n_top best
    float* top_logprobs;  // [max_top]; -inf past the n_top best
};

// A row of logits as a product leaves it, and the largest of each of its blocks.
struct LogitRow {
    const View& x;
    int m, vocab;
    const float* maxima;

    float at(int i) const;
    void copy(float* to) const;  // its `vocab` logits
};

// The logits may be finite or not. `room` is for a contiguous copy of the row, which greedy choices do without. Pure:
// nothing but the arguments decides, and nothing is kept from row to row.
void sample_row(const KernelTable& kernels, const di_sample& sample, const LogitRow& row, float* room,
                SamplerScratch& scratch, SampleResult& result);

}  // namespace di
