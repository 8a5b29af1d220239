// Cosines and sines of a step's positions: out[T, cos[h] | sin[h]].
#include "double_math.cuh"
#include "view.cuh"

namespace di {
namespace {

constexpr int kStatic = 0, kLong = 2, kPromptNtk = 3;  // of di_rope_kind

// The position row that turns frequency j; steps with fewer rows than the model's sections have equal positions.
__device__ __forceinline__ int position_row(const RopeTableArgs& a, int j) {
    const int32_t* s = a.sections;
    int row = 0;
    if (a.interleaved) {
        row = j % 3 == 1 && j < 3 * s[1] ? 1 : j % 3 == 2 && j < 3 * s[2] ? 2 : 0;
    } else if (j >= s[0] && s[0] + s[1] + s[2] > 0) {
        row = j < s[0] + s[1] ? 1 : j < s[0] + s[1] + s[2] ? 2 : 0;
    }
    return row < a.position_rows ? row : 0;
}

// NTK scaling: the base grows with the length n (source: the Hugging Face "dynamic" rope type), rounded to fp32 where
// that implementation rounds. Qwen's, of the prompt's length, grows by the next 2^i - 1 with 2^(i - 1) no less than n /
// original.
__device__ inline float ntk_frequency(const RopeTableArgs& a, int n, int j) {
    const double d = 2.0 * a.half, f = a.scaling;
    double growth = f * n / a.original - (f - 1);
    if (a.kind == kPromptNtk) {
        int64_t power = 1;
        while (power * a.original < n) power *= 2;
        growth = static_cast<double>(2 * power - 1);
    }
    const double base = a.theta * pow_double(growth, d / (d - 2));
    const float exponent = static_cast<float>(2 * j) / static_cast<float>(2 * a.half);
    return 1.0f / static_cast<float>(pow_double(base, exponent));
}

}  // namespace
}  // namespace di

extern "C" __global__ void __launch_bounds__(128) rope_table(di::RopeTableArgs a) {
    using namespace di;
    const int t = blockIdx.x;
    if (t >= count(a.rows)) return;
    const int n = a.kind == kPromptNtk ? a.prompt_len[t] : a.history[t];
    const bool longer = a.kind != kStatic && n > a.original;
    float gain = a.attention;
    if (a.logn > 0 && a.positions[t] >= a.logn)
        gain *= static_cast<float>(log_double(a.positions[t] + 1.0) / log_double(a.logn));
    for (int j = threadIdx.x; j < a.half; j += blockDim.x) {
        const float frequency = !longer ? a.inv_freq[j] : a.kind == kLong ? a.long_inv_freq[j] : ntk_frequency(a, n, j);
        const int position = a.positions[static_cast<int64_t>(position_row(a, j)) * a.position_stride + t];
        double sin, cos;
        sincos_double(static_cast<float>(position) * frequency, sin, cos);
        store1(a.out, t, j, static_cast<float>(cos) * gain);
        store1(a.out, t, a.half + j, static_cast<float>(sin) * gain);
    }
    for (int c = 2 * a.half + threadIdx.x; c < a.out.cols; c += blockDim.x) store1(a.out, t, c, 0.0f);
}
EXPORT_KERNEL(rope_table)
