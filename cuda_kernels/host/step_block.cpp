#include "step_block.h"

#include <algorithm>
#include <cstring>
#include <tuple>

namespace di {

namespace {

constexpr size_t kAlign = 16;

static_assert(sizeof(Sample) == sizeof(di_sample), "kernels read samples as the engine writes them");

size_t aligned(size_t x) { return (x + kAlign - 1) / kAlign * kAlign; }

// A place in the lists as an address: 0 stays "none".
template <class T>
const T* as_address(size_t place) {
    return reinterpret_cast<const T*>(place + 1);
}

template <class T>
void resolve(const T** address, uint64_t lists_at) {
    if (*address) *address = reinterpret_cast<const T*>(reinterpret_cast<uint64_t>(*address) - 1 + lists_at);
}

template <class T>
const T* listed(Lists* lists, uint64_t data, int64_t count) {
    if (!data || count <= 0) return nullptr;
    return as_address<T>(lists->add(reinterpret_cast<const void*>(data), static_cast<size_t>(count) * sizeof(T)));
}

}  // namespace

bool StepSize::operator<(const StepSize& other) const {
    return std::tie(T, B, R, position_rows, table_width, works, merges) <
           std::tie(other.T, other.B, other.R, other.position_rows, other.table_width, other.works, other.merges);
}

StepLayout::StepLayout(const StepSize& size) {
    size_t at = aligned(count_works(size.works.size()));
    const auto take = [&](int64_t count, size_t element) {
        const size_t begin = at;
        at = aligned(at + static_cast<size_t>(count) * element);
        return begin;
    };
    tokens = take(size.T, 4);
    positions = take(int64_t{size.position_rows} * size.T, 4);
    history = take(size.T, 4);
    prompt_len = take(size.T, 4);
    kv_slot = take(size.T, 4);
    q_offset = take(size.B + 1, 4);
    kv_len = take(size.B, 4);
    bidirectional = take(size.B, 4);
    logit_row = take(size.R, 4);
    samples = take(size.R, sizeof(Sample));
    for (size_t plan = 0; plan < size.works.size(); ++plan) {
        works.push_back(take(size.works[plan], sizeof(AttentionWork)));
        merges.push_back(take(size.merges[plan], sizeof(AttentionMerge)));
    }
    table = take(int64_t{size.B} * size.table_width, 4);
    bytes = at;
}

size_t Lists::add(const void* data, size_t size) {
    const size_t begin = aligned(bytes_.size());
    bytes_.resize(begin + size);
    if (size) std::memcpy(bytes_.data() + begin, data, size);
    return begin;
}

void list_samples(const di_step& step, int vocab, int max_top, Lists* lists, std::vector<Sample>* samples) {
    samples->clear();
    for (int r = 0; r < step.R; ++r) {
        const di_sample& from = step.sample[r];
        Sample to;
        std::memcpy(static_cast<void*>(&to), &from, sizeof to);
        const bool reads_history = from.repetition_penalty != 1 || from.presence_penalty != 0 ||
                                   from.frequency_penalty != 0 || from.no_repeat_ngram > 0;
        to.history = reads_history ? listed<int32_t>(lists, from.history, from.history_len) : nullptr;
        to.bias_ids = listed<int32_t>(lists, from.bias_ids, from.n_bias);
        to.bias_values = listed<float>(lists, from.bias_values, from.n_bias);
        to.banned_ids = listed<int32_t>(lists, from.banned_ids, from.n_banned);
        to.mask = listed<uint32_t>(lists, from.mask, (int64_t{vocab} + 31) / 32);
        to.history_len = to.history ? from.history_len : 0;
        to.prompt_len = std::max(0, from.prompt_len);
        to.n_bias = to.bias_ids && to.bias_values ? from.n_bias : 0;
        to.n_banned = to.banned_ids ? from.n_banned : 0;
        to.n_top = std::clamp(from.n_top, 0, max_top);
        samples->push_back(to);
    }
}

void fill_block(const di_step& step, const StepSize& size, const StepLayout& layout,
                const std::vector<AttentionPlan>& plans, int block_tokens, int experts_per_token,
                const std::vector<Sample>& samples, uint64_t lists_at, unsigned char* block) {
    const auto ints = [&](size_t at) { return reinterpret_cast<int32_t*>(block + at); };
    const auto copy = [&](size_t at, const void* from, size_t bytes) {
        if (bytes) std::memcpy(block + at, from, bytes);
    };
    const auto T = static_cast<size_t>(step.T), B = static_cast<size_t>(step.B), R = static_cast<size_t>(step.R);
    *ints(StepLayout::kCountT) = step.T;
    *ints(StepLayout::kCountR) = step.R;
    *ints(StepLayout::kCountE) = step.T * experts_per_token;
    copy(layout.tokens, step.tokens, 4 * T);
    for (int row = 0; row < step.position_rows; ++row)
        copy(layout.positions + 4 * static_cast<size_t>(row) * static_cast<size_t>(size.T),
             step.positions + int64_t{row} * step.position_stride, 4 * T);
    copy(layout.q_offset, step.q_offset, 4 * (B + 1));
    copy(layout.kv_len, step.kv_len, 4 * B);
    copy(layout.bidirectional, step.bidirectional, 4 * B);
    copy(layout.logit_row, step.logit_row, 4 * R);
    for (int b = 0; b < step.B; ++b) {
        const int32_t* table = step.block_table + int64_t{b} * step.max_blocks;
        const int begin = step.q_offset[b], end = step.q_offset[b + 1], before = step.kv_len[b] - (end - begin);
        for (int t = begin; t < end; ++t) {
            ints(layout.history)[t] = std::max(step.prompt_len[b], step.positions[t] + 1);
            ints(layout.prompt_len)[t] = step.prompt_len[b];
            if (size.table_width == 0) continue;
            const int at = before + t - begin;
            ints(layout.kv_slot)[t] = table[at / block_tokens] * block_tokens + at % block_tokens;
        }
        if (size.table_width == 0) continue;
        const auto used = static_cast<size_t>((step.kv_len[b] - 1) / block_tokens + 1);
        copy(layout.table + 4 * static_cast<size_t>(b) * static_cast<size_t>(size.table_width), table, 4 * used);
    }
    for (size_t i = 0; i < plans.size(); ++i) {
        *ints(StepLayout::count_works(i)) = static_cast<int32_t>(plans[i].work().size());
        *ints(StepLayout::count_merges(i)) = static_cast<int32_t>(plans[i].merges().size());
        copy(layout.works[i], plans[i].work().data(), plans[i].work().size() * sizeof(AttentionWork));
        copy(layout.merges[i], plans[i].merges().data(), plans[i].merges().size() * sizeof(AttentionMerge));
    }
    auto* to = reinterpret_cast<Sample*>(block + layout.samples);
    for (size_t r = 0; r < samples.size(); ++r) {
        Sample sample = samples[r];
        resolve(&sample.history, lists_at);
        resolve(&sample.bias_ids, lists_at);
        resolve(&sample.bias_values, lists_at);
        resolve(&sample.banned_ids, lists_at);
        resolve(&sample.mask, lists_at);
        to[r] = sample;
    }
}

}  // namespace di
