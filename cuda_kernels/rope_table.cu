// Cosines and sines of a step's positions: out[T, cos[h] | sin[h]].
#include "double_math.cuh"
#include "view.cuh"

namespace di {
namespace {

// The position row that turns frequency j; steps with fewer rows than the model's sections have equal positions.
__device__ __forceinline__ int position_row(const RopeTableArgs& a, int j) {
    const int32_t* s = a.sections;
    int row = 0;
    if (a.interleaved) {
        if (j % 3 && j < 3 * s[j % 3]) row = j % 3;
    } else if (j >= s[0] && s[0] + s[1] + s[2] > 0) {
        row = j < s[0] + s[1] ? 1 : j < s[0] + s[1] + s[2] ? 2 : 0;
    }
    return row < a.position_rows ? row : 0;
}

// Dynamic NTK: the base grows with the length n (source: the Hugging Face "dynamic" rope type), rounded to fp32 where
// that implementation rounds.
__device__ inline float dynamic_frequency(const RopeTableArgs& a, int n, int j) {
    const double d = 2.0 * a.half, f = a.scaling;
    const double base = a.theta * pow_double(f * n / a.original - (f - 1), d / (d - 2));
    const float exponent = static_cast<float>(2 * j) / static_cast<float>(2 * a.half);
    return 1.0f / static_cast<float>(pow_double(base, exponent));
}

}  // namespace
}  // namespace di

extern "C" __global__ void __launch_bounds__(128) rope_table(di::RopeTableArgs a) {
    using namespace di;
    const int t = blockIdx.x;
    if (t >= count(a.rows)) return;
    const int n = a.history[t];
    const bool longer = a.kind != 0 && n > a.original;
    for (int j = threadIdx.x; j < a.half; j += blockDim.x) {
        const float frequency = !longer       ? a.inv_freq[j]
                                : a.kind == 1 ? dynamic_frequency(a, n, j)
                                              : a.long_inv_freq[j];
        const int position = a.positions[static_cast<int64_t>(position_row(a, j)) * a.position_stride + t];
        double sin, cos;
        sincos_double(static_cast<float>(position) * frequency, sin, cos);
        store1(a.out, t, j, static_cast<float>(cos) * a.attention);
        store1(a.out, t, a.half + j, static_cast<float>(sin) * a.attention);
    }
    for (int c = 2 * a.half + threadIdx.x; c < a.out.cols; c += blockDim.x) store1(a.out, t, c, 0.0f);
}
EXPORT_KERNEL(rope_table)
