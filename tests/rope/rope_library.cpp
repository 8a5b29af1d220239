// The rope table with a plain C entry.
#include <cstddef>

#include "../../cpu_kernels/runtime/fp_mode.h"
#include "../../cpu_kernels/runtime/rope_table.h"

// y is an fp32 activation of `tokens` rows and `cols` columns in cells, as layout.h describes.
extern "C" __attribute__((visibility("default"))) void rope(float* y, int tokens, int cols, const float* inv_freq,
                                                            const float* long_inv_freq, int kind, int half,
                                                            int original, const int* sections, int interleaved,
                                                            const float* factors, const int* positions, int rows,
                                                            int stride, const int* prompt_len, int logn, int t0,
                                                            int t1) {
    const di::KernelFpMode mode;
    di::RopeTableArgs a{};
    a.y = di::View{y, tokens, cols, cols / di::kCell, 0, di::DType::F32};
    a.inv_freq = inv_freq;
    a.long_inv_freq = long_inv_freq;
    a.kind = kind;
    a.half = half;
    a.original = original;
    for (int i = 0; i < 3; ++i) a.sections[i] = sections[i];
    a.interleaved_sections = interleaved != 0;
    a.attention_factor = factors[0];
    a.factor = factors[1];
    a.theta = factors[2];
    a.positions = positions;
    a.position_rows = rows;
    a.position_stride = stride;
    a.prompt_len = prompt_len;
    a.logn = logn;
    di::rope_table(a, t0, t1);
}
