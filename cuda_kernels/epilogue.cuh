// What every product ends in: totals[M,N] → act(total + bias) [· up] + residual → out. In a gated layer each 32 rows of
// the weight are 16 gate rows and 16 up rows and give 16 columns.
#pragma once
#include "math.cuh"
#include "row_set.cuh"

namespace di {

constexpr int kGateBit = 16;

__device__ __forceinline__ bool is_gated(const Epilogue& e) { return e.act & kGateBit; }

__device__ __forceinline__ float biased(const Epilogue& e, float total, int n) {
    return e.bias ? total + e.bias[n] : total;
}

// One output: n is the column of the weight (of the gate), `up` is the total of column n + 16 in gated layers.
__device__ __forceinline__ void finish(const Epilogue& e, int m, int n, float total, float up) {
    float y = activate(biased(e, total, n), e.act);
    int column = n;
    if (is_gated(e)) {
        y = y * biased(e, up, n + 16);
        column = (n >> 5) * 16 + (n & 15);
    }
    if (e.residual.data) y = y + load1(e.residual, m, column);
    store1(e.out, m, column, y);
}

// A tile of columns [n0, n0 + columns), n0 and columns multiples of 32 in gated layers; total(m, n) reads a sum of the
// tile. All threads of the block share the work.
template <class Total>
__device__ __forceinline__ void finish_tile(const Epilogue& e, const RowSet& rows, int n0, int columns, Total total) {
    const bool gated = is_gated(e);
    const int outputs = gated ? columns / 2 : columns;
    for (int i = threadIdx.x; i < rows.count * outputs; i += blockDim.x) {
        const int m = i / outputs, j = i % outputs;
        const int n = gated ? (j >> 4) * 32 + (j & 15) : j;
        finish(e, rows.out(m), n0 + n, total(m, n), gated ? total(m, n + 16) : 0.0f);
    }
}

}  // namespace di
