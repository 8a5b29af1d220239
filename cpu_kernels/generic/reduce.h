// Reductions over logits, for sampling: of a contiguous row, or of rows as a product leaves them.
#pragma once
#include "math.h"
#include "rows.h"

namespace di {
namespace {

// NaN if any element is NaN; -inf for an empty row.
inline float row_max(const float* x, int n) {
    const Vec lowest = Vec::set(-__builtin_inff());
    Vec best[4] = {lowest, lowest, lowest, lowest};  // as many chains hide the latency
    Vec nan = Vec::zero();
    int i = 0;
    for (; i + 64 <= n; i += 64) {
        for (int j = 0; j < 4; ++j) {
            const Vec v = Vec::load(x + i + 16 * j);
            best[j] = max(v, best[j]);
            nan = select(is_nan(v), v, nan);
        }
    }
    for (; i < n; i += 16) {
        const Vec v = select(Vec::first_n(n - i), Vec::load_partial(x + i, n - i), lowest);
        best[0] = max(v, best[0]);
        nan = select(is_nan(v), v, nan);
    }
    if (is_nan(nan).any()) return __builtin_nanf("");
    return max(max(best[0], best[1]), max(best[2], best[3])).reduce_max();
}

// The largest of a block of logits, chunks of 32 `step` apart.
DI_INLINE float block_max(const float* p, size_t step, int n) {
    const Vec lowest = Vec::set(-__builtin_inff());
    Vec best = lowest, nan = Vec::zero();
    for (int i = 0; i < n; i += 16) {
        const Vec v = select(Vec::first_n(n - i), Vec::load(p + i / kCell * step + i % kCell), lowest);
        best = max(v, best);
        nan = select(is_nan(v), v, nan);
    }
    return is_nan(nan).any() ? __builtin_nanf("") : best.reduce_max();
}

// Rows of a band are neighbours: together they are read in order, where a row alone has a line or two in every page.
inline void block_maxima(const View& x, int m, int n, int cols, float* maxima, size_t stride) {
    constexpr int kAhead = 8;  // chunks of 32 columns
    for_bands(x, m, m + n, [&](int first, int rows) {
        const float* p = x.row<float>(first);
        float* to = maxima + static_cast<size_t>(first - m) * stride;
        for (int c = 0; c < cols; c += kLogitBlock, p += kLogitBlock / kCell * x.step(), ++to) {
            const int count = cols - c < kLogitBlock ? cols - c : kLogitBlock;
            for (int r = 0; r < rows; ++r) {
                const float* at = p + r * kCell;
                for (int i = 0; i < kCell; i += 16) {
                    __builtin_prefetch(at + kAhead * x.step() + i, 0, 2);
                    __builtin_prefetch(at + (kAhead + 1) * x.step() + i, 0, 2);
                }
                to[static_cast<size_t>(r) * stride] = block_max(at, x.step(), count);
            }
        }
    });
}

// Sum of exp(x - max): 16 fp32 lanes over chunks of 256, chunks added in double in ascending order.
inline double sum_exp(const float* x, int n, float max) {
    constexpr int kChunk = 256;
    const Vec top = Vec::set(max);
    double total = 0;
    for (int i = 0; i < n; i += kChunk) {
        const int count = n - i < kChunk ? n - i : kChunk;
        Vec sum = Vec::zero();
        int j = 0;
        for (; j + 16 <= count; j += 16) sum = sum + exp(Vec::load(x + i + j) - top);
        if (j < count) {
            const Vec e = exp(Vec::load_partial(x + i + j, count - j) - top);
            sum = sum + select(Vec::first_n(count - j), e, Vec::zero());
        }
        total += static_cast<double>(sum.reduce_add());
    }
    return total;
}

// y = exp((x - max) * inv_temperature)
inline void exp_shifted(float* y, const float* x, int n, float max, float inv_temperature) {
    const Vec top = Vec::set(max), factor = Vec::set(inv_temperature);
    int i = 0;
    for (; i + 16 <= n; i += 16) exp((Vec::load(x + i) - top) * factor).store(y + i);
    if (i < n) exp((Vec::load_partial(x + i, n - i) - top) * factor).store_partial(y + i, n - i);
}

}  // namespace
}  // namespace di
