#include "sampler.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <limits>
#include <new>

#include "double_math.h"
#include "philox.h"

namespace di {
namespace {

constexpr int kBlock = SamplerScratch::kBlock;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kGreedyBelow = 1e-5f;  // a temperature this small is greedy
constexpr float kHottest = 1e30f;      // and beyond this one nothing changes any more, but -inf / temperature would
constexpr int kFirstNucleus = 128;     // candidates that top_p looks at first

bool is_nan(float x) { return x != x; }

// ---- Candidates: logits in ascending order of tokens, with the largest of each block --------------------------------

struct Candidates {
    const float* x;
    const int32_t* ids;  // null: the index is the token
    int n;
    const float* maxima;  // [blocks()]
    float max;

    int blocks() const { return (n + kBlock - 1) / kBlock; }
    int token(int i) const { return ids ? ids[i] : i; }
};

Candidates candidates(const KernelTable& kernels, const float* x, const int32_t* ids, int n, float* maxima) {
    Candidates c{x, ids, n, maxima, 0};
    for (int i = 0; i < n; i += kBlock) maxima[i / kBlock] = kernels.max(x + i, std::min(kBlock, n - i));
    c.max = kernels.max(maxima, c.blocks());
    return c;
}

// ---- Order: (logit descending, token ascending), as one integer that is larger for what comes first -----------------

using Key = uint64_t;

// Integers in the order of the floats; -0 and subnormal numbers equal +0.
uint32_t ordered(float x) {
    uint32_t u;
    std::memcpy(&u, &x, sizeof u);
    if ((u & 0x7f800000) == 0) u = 0;
    return u & 0x80000000 ? ~u : u | 0x80000000;
}

Key key_of(float x, int i) { return Key{ordered(x)} << 32 | ~static_cast<uint32_t>(i); }
int index_of(Key key) { return static_cast<int>(~static_cast<uint32_t>(key)); }

// Calls visit(key) for the candidates at or above `floor` (the order of a logit), in ascending order of tokens; blocks
// below it are not read.
template <class Visit>
void visit_from(const Candidates& c, uint32_t floor, Visit visit) {
    for (int b = 0; b < c.blocks(); ++b) {
        if (ordered(c.maxima[b]) < floor) continue;
        const int end = std::min((b + 1) * kBlock, c.n);
        for (int i = b * kBlock; i < end; ++i)
            if (ordered(c.x[i]) >= floor) visit(key_of(c.x[i], i));
    }
}

// Writes the keys of a superset of the first m candidates, unordered, and returns how many. If m blocks reach up to t,
// so do m logits: the m-th largest block maximum is a safe threshold, and hardly more than m logits pass it unless
// there are ties.
int collect(const Candidates& c, int m, SamplerScratch& s) {
    uint32_t floor = 0;
    if (m <= c.blocks()) {
        std::copy(c.maxima, c.maxima + c.blocks(), s.order.get());
        std::nth_element(s.order.get(), s.order.get() + (m - 1), s.order.get() + c.blocks(), std::greater<float>());
        floor = ordered(s.order[m - 1]);
    }
    int count = 0;
    visit_from(c, floor, [&](Key key) { s.keys[count++] = key; });
    return count;
}

// The key of the k-th candidate, 1 <= k <= n.
Key kth(const Candidates& c, int k, SamplerScratch& s) {
    const int count = collect(c, k, s);
    std::nth_element(s.keys.get(), s.keys.get() + (k - 1), s.keys.get() + count, std::greater<Key>());
    return s.keys[k - 1];
}

// The candidates from the first to that of `last`. They are moved to the front of the scratch row, which c may be.
Candidates keep(const KernelTable& kernels, const Candidates& c, Key last, SamplerScratch& s) {
    int n = 0;
    visit_from(c, static_cast<uint32_t>(last >> 32), [&](Key key) {
        if (key < last) return;
        const int i = index_of(key);
        s.row[n] = c.x[i];
        s.ids[n++] = c.token(i);
    });
    return candidates(kernels, s.row.get(), s.ids.get(), n, s.maxima.get());
}

// ---- Mass: probabilities as integers, whose sums do not depend on the order of summation ----------------------------

// A weight in [0, 1] in units of 2^-44, to the nearest, ties to even: the low bits of 256 + weight.
uint64_t mass_of(float weight) { return bits_of(static_cast<double>(weight) + 256.0) - bits_of(256.0); }

// floor(a * fraction / 2^64)
uint64_t share_of(uint64_t a, uint64_t fraction) {
    __extension__ using Wide = unsigned __int128;
    return static_cast<uint64_t>(static_cast<Wide>(a) * fraction >> 64);
}

// weights[i] = exp((x[i] - max) / temperature), zeros up to the block's end. Infinite logits share everything.
void weigh(const KernelTable& kernels, const Candidates& c, float inv_temperature, float* weights) {
    if (c.max == kInfinity)
        for (int i = 0; i < c.n; ++i) weights[i] = c.x[i] == kInfinity ? 1.0f : 0.0f;
    else
        kernels.exp_shifted(weights, c.x, c.n, c.max, inv_temperature);
    std::fill(weights + c.n, weights + c.blocks() * kBlock, 0.0f);
}

// Fills the masses of the blocks and returns their sum.
uint64_t measure(const float* weights, int blocks, uint64_t* masses) {
    uint64_t total = 0;
    for (int b = 0; b < blocks; ++b) {
        uint64_t mass = 0;
        for (int i = 0; i < kBlock; ++i) mass += mass_of(weights[b * kBlock + i]);
        masses[b] = mass;
        total += mass;
    }
    return total;
}

// The key of the candidate with which the sum of masses, in order, reaches `need` (1 <= need <= total).
Key nucleus(const Candidates& c, uint64_t need, SamplerScratch& s) {
    const auto mass = [&](const Key* begin, const Key* end) {
        uint64_t sum = 0;
        for (; begin < end; ++begin) sum += mass_of(s.weights[index_of(*begin)]);
        return sum;
    };
    Key* begin = s.keys.get();
    Key* end = begin;
    for (int m = kFirstNucleus;; m *= 8) {
        const bool all = m > c.blocks();
        end = begin + collect(c, all ? c.n : m, s);
        if (all || mass(begin, end) >= need) break;
    }
    while (end - begin > 1) {  // the wanted key is in [begin, end)
        Key* middle = begin + (end - begin) / 2;
        std::nth_element(begin, middle, end, std::greater<Key>());
        const uint64_t upper = mass(begin, middle);
        if (upper >= need) {
            end = middle;
        } else {
            need -= upper;
            begin = middle;
        }
    }
    return *begin;
}

// The index at which the running sum of masses, in ascending order of tokens, exceeds `target` (below the total).
int walk(const float* weights, const uint64_t* masses, uint64_t target) {
    int b = 0;
    while (target >= masses[b]) target -= masses[b++];
    int i = b * kBlock;
    while (target >= mass_of(weights[i])) target -= mass_of(weights[i++]);
    return i;
}

// ---- Edits of the logits --------------------------------------------------------------------------------------------

template <class T>
const T* at(uint64_t address) {
    return reinterpret_cast<const T*>(static_cast<uintptr_t>(address));
}

bool has_history(const di_sample& s) { return s.history && s.history_len > 0; }
bool penalizes(const di_sample& s) {
    return s.repetition_penalty != 1 || s.presence_penalty != 0 || s.frequency_penalty != 0;
}

bool edits(const di_sample& s) {
    return s.mask || s.n_banned > 0 || s.n_bias > 0 || (has_history(s) && (penalizes(s) || s.no_repeat_ngram > 0));
}

// y = x where the mask has a one, -inf elsewhere. Masks change from token to token in ways that no branch predictor
// learns, so all words but zeros are taken without branches, four tokens at a time.
void copy_allowed(const float* x, int vocab, const uint32_t* mask, float* y) {
    constexpr int kWord = 32;
    constexpr uint32_t kMinusInfinity = 0xff800000;
    alignas(64) static constexpr uint32_t kBit[kWord] = {
        1u << 0,  1u << 1,  1u << 2,  1u << 3,  1u << 4,  1u << 5,  1u << 6,  1u << 7,  1u << 8,  1u << 9,  1u << 10,
        1u << 11, 1u << 12, 1u << 13, 1u << 14, 1u << 15, 1u << 16, 1u << 17, 1u << 18, 1u << 19, 1u << 20, 1u << 21,
        1u << 22, 1u << 23, 1u << 24, 1u << 25, 1u << 26, 1u << 27, 1u << 28, 1u << 29, 1u << 30, 1u << 31};
    int first = 0;
    for (; first + kWord <= vocab; first += kWord) {
        const uint32_t word = mask[first / kWord];
        if (word == 0) {
            std::fill_n(y + first, kWord, -kInfinity);
            continue;
        }
        uint32_t bits[kWord];
        std::memcpy(bits, x + first, sizeof bits);
        for (int i = 0; i < kWord; ++i) {
            const uint32_t banned = (word & kBit[i]) == 0 ? ~0u : 0u;
            bits[i] = (bits[i] & ~banned) | (kMinusInfinity & banned);
        }
        std::memcpy(y + first, bits, sizeof bits);
    }
    for (; first < vocab; ++first) y[first] = mask[first / kWord] >> first % kWord & 1 ? x[first] : -kInfinity;
}

// A token's count word: bit 0 for a place in the history, 2 for each time it was generated.
void apply_penalties(float* x, int vocab, const di_sample& s, uint32_t* counts) {
    const int32_t* history = at<int32_t>(s.history);
    const auto known = [&](int32_t token) { return token >= 0 && token < vocab; };
    for (int i = 0; i < s.history_len; ++i)
        if (known(history[i])) counts[history[i]] = (counts[history[i]] | 1) + (i >= s.prompt_len ? 2 : 0);
    for (int i = 0; i < s.history_len; ++i) {
        if (!known(history[i]) || !counts[history[i]]) continue;
        float& logit = x[history[i]];
        const float generated = static_cast<float>(counts[history[i]] >> 1);
        counts[history[i]] = 0;
        logit = logit > 0 ? logit / s.repetition_penalty : logit * s.repetition_penalty;
        if (generated == 0) continue;
        logit = logit - s.frequency_penalty * generated;
        logit = logit - s.presence_penalty;
    }
}

// Forbids every token that would complete an n-gram of the history for a second time.
void apply_no_repeat(float* x, int vocab, const int32_t* history, int length, int n) {
    for (int i = 0; i <= length - n; ++i) {
        const int32_t next = history[i + n - 1];
        if (next < 0 || next >= vocab) continue;
        if (std::equal(history + i, history + i + n - 1, history + length - (n - 1))) x[next] = -kInfinity;
    }
}

void edit(float* x, int vocab, const di_sample& s, uint32_t* counts) {
    for (int i = 0; i < s.n_banned; ++i) {
        const int32_t token = at<int32_t>(s.banned_ids)[i];
        if (token >= 0 && token < vocab) x[token] = -kInfinity;
    }
    for (int i = 0; i < s.n_bias; ++i) {
        const int32_t token = at<int32_t>(s.bias_ids)[i];
        if (token >= 0 && token < vocab) x[token] += at<float>(s.bias_values)[i];
    }
    if (!has_history(s)) return;
    if (penalizes(s)) apply_penalties(x, vocab, s, counts);
    if (s.no_repeat_ngram > 0) apply_no_repeat(x, vocab, at<int32_t>(s.history), s.history_len, s.no_repeat_ngram);
}

// ---- Report of the raw distribution ---------------------------------------------------------------------------------

// ln of the sum of exp(x - max); with infinite logits, of their number.
double log_sum(const KernelTable& kernels, const Candidates& c) {
    if (c.max == kInfinity) return log_double(static_cast<double>(std::count(c.x, c.x + c.n, kInfinity)));
    return log_double(kernels.sum_exp(c.x, c.n, c.max));
}

float logprob_of(const Candidates& c, float x, double log_sum) {
    if (x == -kInfinity || (c.max == kInfinity && x != kInfinity)) return -kInfinity;
    const double below_max = c.max == kInfinity ? 0.0 : static_cast<double>(x) - static_cast<double>(c.max);
    return static_cast<float>(below_max - log_sum);
}

int rank_of(const Candidates& c, int token) {
    const Key key = key_of(c.x[token], token);
    int rank = 0;
    visit_from(c, ordered(c.x[token]), [&](Key other) { rank += other >= key; });
    return rank;
}

void report_top(const Candidates& c, int n_top, double log_sum, SamplerScratch& s, SampleResult& r) {
    const int n = std::min({n_top, c.n, s.max_top});
    if (n <= 0 || !r.top_ids) return;
    const int count = collect(c, n, s);
    std::partial_sort(s.keys.get(), s.keys.get() + n, s.keys.get() + count, std::greater<Key>());
    for (int i = 0; i < n; ++i) {
        r.top_ids[i] = index_of(s.keys[i]);
        r.top_logprobs[i] = logprob_of(c, c.x[r.top_ids[i]], log_sum);
    }
}

// ---- The draw -------------------------------------------------------------------------------------------------------

// The first index with the largest logit; logit(i) is the i-th one.
template <class Logit>
int argmax(const float* maxima, float max, Logit logit) {
    const uint32_t floor = ordered(max);
    int b = 0;
    while (ordered(maxima[b]) < floor) ++b;
    int i = b * kBlock;
    while (ordered(logit(i)) < floor) ++i;
    return i;
}

int draw(const KernelTable& kernels, Candidates c, const di_sample& s, SamplerScratch& scratch) {
    const float inv_temperature = 1.0f / std::min(s.temperature, kHottest);
    float* weights = scratch.weights.get();
    uint64_t* masses = scratch.masses.get();

    if (s.top_k > 0 && s.top_k < c.n) c = keep(kernels, c, kth(c, s.top_k, scratch), scratch);
    weigh(kernels, c, inv_temperature, weights);
    if (s.top_p < 1) {
        const uint64_t fraction = static_cast<uint64_t>(std::max(s.top_p, 0.0f) * 0x1p64);
        const uint64_t need = std::max<uint64_t>(share_of(measure(weights, c.blocks(), masses), fraction), 1);
        c = keep(kernels, c, nucleus(c, need, scratch), scratch);
        weigh(kernels, c, inv_temperature, weights);
    }
    if (s.min_p > 0)
        for (int i = 0; i < c.n; ++i)
            if (weights[i] < std::min(s.min_p, 1.0f)) weights[i] = 0;

    const uint64_t total = measure(weights, c.blocks(), masses);
    return c.token(walk(weights, masses, share_of(total, token_bits(s.seed, s.sample_index, s.position))));
}

// Sets the result's token and status.
void pick(const KernelTable& kernels, const di_sample& s, const Candidates& raw, SamplerScratch& scratch,
          SampleResult& r) {
    Candidates c = raw;
    if (edits(s)) {
        if (s.mask)
            copy_allowed(raw.x, raw.n, at<uint32_t>(s.mask), scratch.row.get());
        else
            std::copy(raw.x, raw.x + raw.n, scratch.row.get());
        edit(scratch.row.get(), raw.n, s, scratch.counts.get());
        c = candidates(kernels, scratch.row.get(), nullptr, raw.n, scratch.maxima.get());
    }
    if (is_nan(c.max))
        r.status = DI_SAMPLE_NAN;
    else if (c.max == -kInfinity)
        r.status = DI_SAMPLE_EMPTY;
    else
        r.token = s.temperature >= kGreedyBelow ? draw(kernels, c, s, scratch)
                                                : argmax(c.maxima, c.max, [&](int i) { return c.x[i]; });
}

}  // namespace

bool SamplerScratch::create(int vocab, int max_top_) {
    if (vocab < 1 || vocab > kMaxVocab) return false;
    blocks = (vocab + kBlock - 1) / kBlock;
    max_top = max_top_;
    const auto n = static_cast<size_t>(blocks);
    const size_t v = n * kBlock;
    row.reset(new (std::nothrow) float[v]);
    ids.reset(new (std::nothrow) int32_t[v]);
    weights.reset(new (std::nothrow) float[v]);
    keys.reset(new (std::nothrow) uint64_t[v]);
    counts.reset(new (std::nothrow) uint32_t[v]());
    raw_maxima.reset(new (std::nothrow) float[kRows * n]);
    maxima.reset(new (std::nothrow) float[n]);
    order.reset(new (std::nothrow) float[n]);
    masses.reset(new (std::nothrow) uint64_t[n]);
    return row && ids && weights && keys && counts && raw_maxima && maxima && order && masses;
}

float LogitRow::at(int i) const { return x.row<const float>(m)[static_cast<size_t>(i / kCell) * x.step() + i % kCell]; }

// A row's chunks lie a page apart, where no hardware prefetcher follows.
void LogitRow::copy(float* to) const {
    constexpr int kAhead = 24;  // chunks
    const float* from = x.row<const float>(m);
    for (int c = 0; c < vocab; c += kCell, from += x.step()) {
        const float* ahead = from + kAhead * x.step();
        __builtin_prefetch(ahead, 0, 2);
        __builtin_prefetch(ahead + 16, 0, 2);
        std::memcpy(to + c, from, sizeof(float) * static_cast<size_t>(std::min(kCell, vocab - c)));
    }
}

void sample_row(const KernelTable& kernels, const di_sample& s, const LogitRow& row, float* room,
                SamplerScratch& scratch, SampleResult& r) {
    r.token = r.rank = 0;
    r.status = DI_SAMPLE_OK;
    r.logprob = 0;
    if (r.top_ids) {
        std::fill(r.top_ids, r.top_ids + scratch.max_top, -1);
        std::fill(r.top_logprobs, r.top_logprobs + scratch.max_top, -kInfinity);
    }
    const float max = kernels.max(row.maxima, scratch.blocks);
    if (is_nan(max)) {
        r.status = DI_SAMPLE_NAN;
        return;
    }
    if (max == -kInfinity || s.target >= row.vocab) {
        r.status = DI_SAMPLE_EMPTY;
        return;
    }

    const bool report = (s.flags & DI_SAMPLE_RAW_LOGPROB) || s.target >= 0;
    if (!report && !edits(s) && s.temperature < kGreedyBelow) {
        r.token = argmax(row.maxima, max, [&](int i) { return row.at(i); });
        return;
    }
    row.copy(room);
    const Candidates raw{room, nullptr, row.vocab, row.maxima, max};
    const double log_total = report ? log_sum(kernels, raw) : 0;
    if (report) report_top(raw, s.n_top, log_total, scratch, r);
    if (s.target >= 0)
        r.token = s.target;
    else
        pick(kernels, s, raw, scratch, r);
    if (!report || r.status != DI_SAMPLE_OK) return;
    r.logprob = logprob_of(raw, room[r.token], log_total);
    r.rank = rank_of(raw, r.token);
}

}  // namespace di
