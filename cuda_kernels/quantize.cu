// Activations as integers: x[T,K] → int8 planes[T,P·Kp], and for each group a scale and the sum of its integers. The
// bits are those of docs/arithmetic.md.
#include "reduce.cuh"
#include "view.cuh"

namespace di {
namespace {

__device__ __forceinline__ int column_of(const QuantizeArgs& a, int k) {
    if (a.order) return a.order[k];
    return a.head ? k / a.head * a.padded_head + k % a.head : k;
}

}  // namespace
}  // namespace di

extern "C" __global__ void __launch_bounds__(256) quantize(di::QuantizeArgs a) {
    using namespace di;
    const int t = blockIdx.x, g = blockIdx.y, groups = gridDim.y;
    if (t >= count(a.rows)) return;
    SHARED(float, float_scratch, kMaxWarps);
    SHARED(int, int_scratch, kMaxWarps);
    const int k0 = g * a.group, n = min(a.group, a.K - k0);

    float largest = 0, finite = 0;  // finite: 0, or NaN
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        const float x = load1(a.x, t, column_of(a, k0 + i));
        largest = fmaxf(largest, fabsf(x));
        finite = finite + x * 0.0f;
    }
    largest = block_reduce(largest, float_scratch, Max());
    finite = block_reduce(finite, float_scratch, Add());
    const bool broken = finite != finite;
    float scale = broken ? 0.0f : largest / (a.n_planes == 2 ? 32512.0f : 127.0f);
    const bool nothing = !(scale >= 1.17549435e-38f);
    if (nothing) scale = 1.0f;
    const float r = 1.0f / scale, e = fmaf(-scale, r, 1.0f) * r;

    int sum = 0;
    int8_t* high = a.planes + t * a.planes_stride + static_cast<int64_t>(g) * a.group_padded;
    int8_t* low = high + static_cast<int64_t>(groups) * a.group_padded;
    for (int i = threadIdx.x; i < a.group_padded; i += blockDim.x) {
        int q = 0;
        if (i < n && !nothing) {
            const float x = load1(a.x, t, column_of(a, k0 + i));
            q = static_cast<int>(rintf(fmaf(x, r, x * e)));
        }
        sum += q;
        const int top = a.n_planes == 2 ? (q + 128) >> 8 : q;
        high[i] = static_cast<int8_t>(top);
        if (a.n_planes == 2) low[i] = static_cast<int8_t>(q - 256 * top);
    }
    sum = block_reduce(sum, int_scratch, Add());
    float* grid = a.grid + t * a.grid_stride;
    if (threadIdx.x == 0) {
        grid[g] = broken ? __int_as_float(0x7fc00000) : scale;
        grid[groups + g] = __int_as_float(sum);
    }
    if (g == 0)
        for (int c = 2 * groups + threadIdx.x; c < a.grid_cols; c += blockDim.x) grid[c] = 0;
}
EXPORT_KERNEL(quantize)
