// The sampler with plain C entries, over a kernel table of loops that follow docs/arithmetic.md.
#include "../../cpu_kernels/runtime/sampler.h"

#include <algorithm>
#include <cmath>
#include <new>
#include <vector>

#include "../../cpu_kernels/runtime/double_math.h"
#include "../../cpu_kernels/runtime/fp_mode.h"
#include "../../cpu_kernels/runtime/philox.h"

namespace {

constexpr float kCoefficients[] = {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f,
                                   5.0000001201e-1f};

float plain_exp(float x) {
    if (x < -87.0f) return 0.0f;
    const float n = std::nearbyint(x * 1.4426950408889634f);
    float r = std::fma(-n, 0.693359375f, x);
    r = std::fma(-n, -2.12194440e-4f, r);
    float p = 1.9875691500e-4f;
    for (const float c : kCoefficients) p = std::fma(p, r, c);
    return std::ldexp(std::fma(p, r * r, r + 1.0f), static_cast<int>(n));
}

float plain_max(const float* x, int n) {
    float max = x[0];
    for (int i = 0; i < n; ++i) {
        if (x[i] != x[i]) return x[i];
        if (x[i] > max) max = x[i];
    }
    return max;
}

double plain_sum_exp(const float* x, int n, float max) {
    double sum = 0;
    for (int i = 0; i < n; ++i) sum += plain_exp(x[i] - max);
    return sum;
}

void plain_exp_shifted(float* y, const float* x, int n, float max, float inv_temperature) {
    for (int i = 0; i < n; ++i) y[i] = plain_exp((x[i] - max) * inv_temperature);
}

di::KernelTable table() {
    di::KernelTable t{};
    t.max = plain_max;
    t.sum_exp = plain_sum_exp;
    t.exp_shifted = plain_exp_shifted;
    return t;
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int record_bytes() { return sizeof(di_sample); }

EXPORT void philox(uint32_t* counter, const uint32_t* key) {
    const di::PhiloxBlock r = di::philox4x32({{counter[0], counter[1], counter[2], counter[3]}}, key[0], key[1]);
    for (int i = 0; i < 4; ++i) counter[i] = r.x[i];
}

EXPORT void* scratch_create(int vocab, int max_top) {
    auto* scratch = new (std::nothrow) di::SamplerScratch;
    if (scratch && scratch->create(vocab, max_top)) return scratch;
    delete scratch;
    return nullptr;
}

EXPORT void scratch_free(void* scratch) { delete static_cast<di::SamplerScratch*>(scratch); }

// Samples `count` records from the same row; the outputs are arrays of `count` entries or rows of max_top.
EXPORT void sample_many(void* memory, const di_sample* records, int count, const float* row, int vocab, int max_top,
                        int32_t* token, int32_t* status, float* logprob, int32_t* rank, int32_t* top_ids,
                        float* top_logprobs) {
    const di::KernelFpMode mode;
    const di::KernelTable kernels = table();
    di::SamplerScratch& scratch = *static_cast<di::SamplerScratch*>(memory);
    std::vector<float> maxima, room(static_cast<size_t>(vocab));
    for (int first = 0; first < vocab; first += di::kLogitBlock)
        maxima.push_back(plain_max(row + first, std::min(di::kLogitBlock, vocab - first)));
    // Alone in its band a row is contiguous.
    const di::View view{const_cast<float*>(row), 1, vocab, (vocab + di::kCell - 1) / di::kCell, 0, di::DType::F32};
    for (int i = 0; i < count; ++i) {
        di::SampleResult r{-7, -7, -7, -7, top_ids + i * max_top, top_logprobs + i * max_top};
        di::sample_row(kernels, records[i], di::LogitRow{view, 0, vocab, maxima.data()}, room.data(), scratch, r);
        token[i] = r.token;
        status[i] = r.status;
        logprob[i] = r.logprob;
        rank[i] = r.rank;
    }
}

EXPORT double natural_log(double x) { return di::log_double(x); }
EXPORT double natural_exp(double x) { return di::exp_double(x); }
EXPORT double power(double x, double y) { return di::pow_double(x, y); }
EXPORT void sine_cosine(const float* x, int n, double* sine, double* cosine) {
    for (int i = 0; i < n; ++i) {
        const di::SinCos r = di::sincos_double(x[i]);
        sine[i] = r.sin;
        cosine[i] = r.cos;
    }
}
