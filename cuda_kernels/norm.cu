// RMS norm and layer norm: x[T,n] → y[T,n], one block a row.
#include "reduce.cuh"
#include "view.cuh"

namespace di {
namespace {

// y = (x - mean) · (1 / sqrt(mean((x - mean)²) + eps)) · w + b; without `kMean` the mean counts as 0.
template <bool kMean>
__device__ __forceinline__ void norm_row(const NormArgs& a) {
    const int row = blockIdx.x;
    if (row >= count(a.rows)) return;
    SHARED(float, scratch, kMaxWarps);
    const int step = 4 * blockDim.x, first = 4 * threadIdx.x;

    float mean = 0;
    if (kMean) {
        float sum = 0;
        for (int c = first; c < a.n; c += step) {
            const Four x = load4(a.in, row, c);
            for (int i = 0; i < 4; ++i) sum += c + i < a.n ? x.x[i] : 0.0f;
        }
        mean = block_reduce(sum, scratch, Add()) / static_cast<float>(a.n);
    }
    float squares = 0;
    for (int c = first; c < a.n; c += step) {
        const Four x = load4(a.in, row, c);
        for (int i = 0; i < 4; ++i) {
            const float d = c + i < a.n ? x.x[i] - mean : 0.0f;
            squares = fmaf(d, d, squares);
        }
    }
    const float variance = block_reduce(squares, scratch, Add()) / static_cast<float>(a.n);
    const float inverse = 1.0f / sqrtf(variance + a.eps);
    for (int c = first; c < a.out.cols; c += step) {
        Four y = {};
        if (c < a.n) {
            const Four x = load4(a.in, row, c);
            for (int i = 0; i < 4; ++i) {
                if (c + i >= a.n) continue;
                const float scaled = (x.x[i] - mean) * inverse;
                y.x[i] = kMean ? fmaf(scaled, a.w[c + i], a.b ? a.b[c + i] : 0.0f) : scaled * a.w[c + i];
            }
        }
        store4(a.out, row, c, y);
    }
}

}  // namespace
}  // namespace di

extern "C" __global__ void __launch_bounds__(1024) rms_norm(di::NormArgs a) { di::norm_row<false>(a); }
EXPORT_KERNEL(rms_norm)
extern "C" __global__ void __launch_bounds__(1024) layer_norm(di::NormArgs a) { di::norm_row<true>(a); }
EXPORT_KERNEL(layer_norm)
