// Picks a token from each row of logits, as docs/sampling.md says and with the bits of the CPU: one block a row.
#include "philox.cuh"
#include "sample_edit.cuh"
#include "sample_report.cuh"
#include "view.cuh"

namespace di {
namespace {

constexpr int kStatusOk = 0, kStatusNan = 1, kStatusEmpty = 2;
constexpr uint32_t kRawLogprob = 1;
constexpr float kGreedyBelow = 1e-5f, kHottest = 1e30f;

// Unnormalized probabilities: exp((x - max) / temperature) where the key passes; infinite logits share everything.
struct Weights {
    const float* x;
    Key last;  // of what top_k and top_p leave
    float max, inverse_temperature, least;
    bool infinite;

    __device__ __forceinline__ float weight(int i) const {
        if (infinite) return ordered(x[i]) == kOrderedInfinity ? 1.0f : 0.0f;
        return exp_spec((x[i] - max) * inverse_temperature);
    }
    // In units of 2^-44, to the nearest, ties to even: the low bits of 256 + weight.
    __device__ __forceinline__ Sum mass(int i) const {
        if (key_of(x[i], i) < last) return 0;
        const float w = weight(i);
        if (w < least) return 0;
        return static_cast<Sum>(__double_as_longlong(static_cast<double>(w) + 256.0) - __double_as_longlong(256.0));
    }
    __device__ Sum total(int n, SelectScratch& s) const {
        Sum sum = 0;
        for (int i = threadIdx.x; i < n; i += blockDim.x) sum += mass(i);
        return block_reduce(sum, s.warp, Add());
    }
};

__device__ int draw(const float* x, int V, const Sample& p, float max, SelectScratch& s) {
    Weights w = {x, 0, max, 1.0f / fminf(p.temperature, kHottest), 0.0f, ordered(max) == kOrderedInfinity};
    if (p.top_k > 0 && p.top_k < V) w.last = select(x, V, static_cast<Sum>(p.top_k), s, [](int) -> Sum { return 1; });
    if (p.top_p < 1.0f) {
        const Sum fraction = static_cast<Sum>(fmaxf(p.top_p, 0.0f) * 18446744073709551616.0f);
        const Sum need = __umul64hi(w.total(V, s), fraction);
        w.last = select(x, V, need ? need : 1, s, [&](int i) { return w.mass(i); });
    }
    if (p.min_p > 0.0f) w.least = fminf(p.min_p, 1.0f);
    const Sum goal = __umul64hi(w.total(V, s), token_bits(p.seed, p.sample_index, p.position));
    return walk(V, goal, s, [&](int i) { return w.mass(i); });
}

struct Picked {
    int token, status;
};

__device__ Picked pick(const float* logits, int V, const Sample& p, Key raw, float* work, uint32_t* counts,
                       SelectScratch& s) {
    const float* x = logits;
    Key best = raw;
    if (edits(p)) {
        edit(work, logits, V, p, counts);
        x = work;
        best = first_key(x, V, s);
    }
    const uint32_t top = static_cast<uint32_t>(best >> 32);
    if (top == kOrderedNan) return {0, kStatusNan};
    if (top == kOrderedMinusInfinity) return {0, kStatusEmpty};
    if (!(p.temperature >= kGreedyBelow)) return {id_of(best), kStatusOk};
    return {draw(x, V, p, x[id_of(best)], s), kStatusOk};
}

}  // namespace
}  // namespace di

// grid R, block 64·n
extern "C" __global__ void __launch_bounds__(1024, 1) sample(di::SampleArgs a) {
    using namespace di;
    SHARED(SelectScratch, select_scratch, 1);
    SHARED(ReportScratch, report_scratch, 1);
    const int row = blockIdx.x, V = a.V;
    if (row >= count(a.rows)) return;
    const Sample& p = a.samples[row];
    const float* x = static_cast<const float*>(a.logits.data) + row * a.logits.stride;
    float* work = a.row_work + row * a.work_stride;
    SelectScratch& s = *select_scratch;
    ReportScratch& r = *report_scratch;

    int32_t* top_ids = a.out_top_ids + static_cast<int64_t>(row) * a.max_top;
    float* top_logprobs = a.out_top_logprobs + static_cast<int64_t>(row) * a.max_top;
    for (int i = threadIdx.x; i < a.max_top; i += blockDim.x) {
        top_ids[i] = -1;
        top_logprobs[i] = minus_infinity_logit();
    }
    const Key best = first_key(x, V, s);
    const uint32_t top = static_cast<uint32_t>(best >> 32);
    Picked picked = {0, kStatusOk};
    float logprob = 0;
    int rank = 0;
    if (top == kOrderedNan) {
        picked.status = kStatusNan;
    } else if (top == kOrderedMinusInfinity || p.target >= V) {
        picked.status = kStatusEmpty;
    } else {
        const bool report = p.target >= 0 || (p.flags & kRawLogprob);
        const float max = x[id_of(best)];
        double log_total = 0;
        if (report) {
            log_total = log_sum(x, V, max, top == kOrderedInfinity, work, s, r);
            report_top(x, V, min(min(p.n_top, V), min(a.max_top, kMaxTop)), max, log_total, top_ids, top_logprobs, s,
                       r);
        }
        if (p.target >= 0)
            picked.token = p.target;
        else
            picked = pick(x, V, p, best, work, a.counts + row * a.work_stride, s);
        if (report && picked.status == kStatusOk) {
            logprob = logprob_of(x[picked.token], max, log_total);
            rank = rank_of(x, V, picked.token, s);
        }
    }
    if (threadIdx.x != 0) return;
    a.out_token[row] = picked.token;
    a.out_status[row] = picked.status;
    a.out_logprob[row] = logprob;
    a.out_rank[row] = rank;
    if (p.slot >= 0 && p.target < 0 && picked.status == kStatusOk) a.last_token[p.slot] = picked.token;
}
EXPORT_KERNEL(sample)
