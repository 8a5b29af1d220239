#include "rope_table.h"

#include "../../dashinfer_lite/include/dashinfer_device.h"
#include "double_math.h"

namespace di {
namespace {

constexpr int kMaxHalf = kMaxHead / 2;

// The position row that turns frequency j. A step with fewer rows than the model's sections (text alone) has equal
// positions in all of them.
int position_row(const RopeTableArgs& a, int j) {
    const int32_t* s = a.sections;
    int row = 0;
    if (a.interleaved_sections) {
        if (j % 3 == 1 && j < 3 * s[1]) row = 1;
        if (j % 3 == 2 && j < 3 * s[2]) row = 2;
    } else if (s[0] + s[1] + s[2] > 0) {
        row = j < s[0] ? 0 : j < s[0] + s[1] ? 1 : j < s[0] + s[1] + s[2] ? 2 : 0;
    }
    return row < a.position_rows ? row : 0;
}

// The length that decides a row's frequencies.
int history(const RopeTableArgs& a, int t) {
    const int32_t prompt = a.prompt_len[t];
    if (a.kind == DI_ROPE_PROMPT_NTK) return prompt;
    return a.positions[t] < prompt ? prompt : a.positions[t] + 1;
}

// NTK scaling: the base grows with the length n beyond the original one, and with it inv_freq[j] = 1 / base^(2j / 2h),
// rounded to fp32 where the Hugging Face implementation rounds. DYNAMIC_NTK is that implementation's "dynamic" rope
// type; PROMPT_NTK is Qwen's, whose growth is the next 2^i - 1, with 2^(i - 1) no less than n / original.
void dynamic_frequencies(const RopeTableArgs& a, int n, float* inv_freq) {
    const double d = 2.0 * a.half, f = a.factor;
    double growth = f * n / a.original - (f - 1);
    if (a.kind == DI_ROPE_PROMPT_NTK) {
        int64_t power = 1;
        while (power * a.original < n) power *= 2;
        growth = static_cast<double>(2 * power - 1);
    }
    const double base = a.theta * pow_double(growth, d / (d - 2));
    for (int j = 0; j < a.half; ++j) {
        const float exponent = static_cast<float>(2 * j) / static_cast<float>(2 * a.half);
        inv_freq[j] = 1.0f / static_cast<float>(pow_double(base, exponent));
    }
}

}  // namespace

void rope_table(const RopeTableArgs& a, int t0, int t1) {
    int row_of[kMaxHalf];
    for (int j = 0; j < a.half; ++j) row_of[j] = position_row(a, j);
    float dynamic[kMaxHalf];
    int dynamic_length = -1;  // the length that `dynamic` holds the frequencies of

    for (int t = t0; t < t1; ++t) {
        const float* inv_freq = a.inv_freq;
        if (a.kind != DI_ROPE_STATIC && history(a, t) > a.original) {
            const int n = history(a, t);
            if (a.kind != DI_ROPE_LONG && n != dynamic_length) {
                dynamic_frequencies(a, n, dynamic);
                dynamic_length = n;
            }
            inv_freq = a.kind == DI_ROPE_LONG ? a.long_inv_freq : dynamic;
        }
        float gain = a.attention_factor;
        if (a.logn > 0 && a.positions[t] >= a.logn)
            gain *= static_cast<float>(log_double(a.positions[t] + 1.0) / log_double(a.logn));

        float* y = a.y.row<float>(t);
        const size_t step = a.y.step();
        const auto at = [=](int c) -> float& { return y[static_cast<size_t>(c / kCell) * step + c % kCell]; };
        for (int j = 0; j < a.half; ++j) {
            const int32_t position = a.positions[static_cast<ptrdiff_t>(row_of[j]) * a.position_stride + t];
            const SinCos turn = sincos_double(static_cast<float>(position) * inv_freq[j]);
            at(j) = static_cast<float>(turn.cos) * gain;
            at(a.half + j) = static_cast<float>(turn.sin) * gain;
        }
        for (int c = 2 * a.half; c < a.y.cols; ++c) at(c) = 0.0f;
    }
}

}  // namespace di
