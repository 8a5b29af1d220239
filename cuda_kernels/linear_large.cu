// What stands around a product of many rows that cuBLASLt computes: fp32 activations as two matrices of fp16 before it,
// the epilogue after it.
#include "epilogue.cuh"
#include "split.cuh"

extern "C" __global__ void __launch_bounds__(128) linear_halves(di::LinearHalvesArgs a) {
    using namespace di;
    const int row = a.first + blockIdx.x;
    const bool there = row < count(a.rows);
    const float* x = static_cast<const float*>(a.x.data) + row * a.x.stride;
    const int64_t to = int64_t{blockIdx.x} * a.K;
    const uint4 zero = make_uint4(0, 0, 0, 0);
    for (int k = 8 * threadIdx.x; k < a.K; k += 8 * blockDim.x) {
        const Halves halves = there ? split8(x + k) : Halves{zero, zero};
        *reinterpret_cast<uint4*>(static_cast<uint16_t*>(a.high) + to + k) = halves.high;
        *reinterpret_cast<uint4*>(static_cast<uint16_t*>(a.low) + to + k) = halves.low;
    }
}
EXPORT_KERNEL(linear_halves)

extern "C" __global__ void __launch_bounds__(128) linear_finish(di::LinearFinishArgs a) {
    using namespace di;
    const int row = a.first + blockIdx.x;
    if (row >= count(a.rows)) return;
    const float* total = a.totals + int64_t{blockIdx.x} * a.N;
    const bool gated = is_gated(a.e);
    const int outputs = gated ? a.N / 2 : a.N;
    for (int j = threadIdx.x; j < outputs; j += blockDim.x) {
        const int n = gated ? (j >> 4) * 32 + (j & 15) : j;
        finish(a.e, row, n, total[n], gated ? total[n + 16] : 0.0f);
    }
}
EXPORT_KERNEL(linear_finish)
