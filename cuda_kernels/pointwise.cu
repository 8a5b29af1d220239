// Element by element: activations, products, sums, scales, soft caps, casts, rows times a gate; and rows gathered by
// number.
#include "math.cuh"
#include "view.cuh"

namespace di {
namespace {

__device__ __forceinline__ float point(const PointwiseArgs& a, float x, float y) {
    switch (a.op) {
        case POINT_ACT:
            return activate(x, a.act);
        case POINT_MUL:
            return x * y;
        case POINT_ADD:
            return x + y;
        case POINT_SCALE:
            return x * a.factor;
        case POINT_GATE:
            return x * sigmoid(y);
        case POINT_SOFTCAP:
            return a.factor * tanh_spec(x / a.factor);
        default:
            return x;
    }
}

}  // namespace
}  // namespace di

extern "C" __global__ void __launch_bounds__(256) pointwise(di::PointwiseArgs a) {
    using namespace di;
    const int row = blockIdx.x;
    if (row >= count(a.rows)) return;
    const int step = 4 * gridDim.y * blockDim.x;
    for (int c = 4 * (blockIdx.y * blockDim.x + threadIdx.x); c < a.out.cols; c += step) {
        const Four x = load4(a.a, row, c);
        Four y = {};
        if (a.op == POINT_GATE)
            y.x[0] = y.x[1] = y.x[2] = y.x[3] = load1(a.b, row, 0);
        else if (a.b.data)
            y = load4(a.b, row, c);
        Four r;
        for (int i = 0; i < 4; ++i) r.x[i] = point(a, x.x[i], y.x[i]);
        store4(a.out, row, c, r);
    }
}
EXPORT_KERNEL(pointwise)

extern "C" __global__ void __launch_bounds__(256) gather_rows(di::GatherArgs a) {
    using namespace di;
    const int row = blockIdx.x;
    if (row >= count(a.rows)) return;
    for (int c = 4 * threadIdx.x; c < a.out.cols; c += 4 * blockDim.x)
        store4(a.out, row, c, load4(a.in, a.row[row], c));
}
EXPORT_KERNEL(gather_rows)
