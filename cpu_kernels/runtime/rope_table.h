// The cosines and sines of a step's rotary embedding, one row a token: out[T, 2h] = cos | sin of position * inv_freq.
#pragma once
#include "../kernels.h"

namespace di {

struct RopeTableArgs {
    View y;                      // fp32: h cosines, h sines, zeros up to y.cols
    const float* inv_freq;       // [h]
    const float* long_inv_freq;  // [h], kind LONG only
    int32_t kind;                // di_rope_kind
    int32_t half;                // h = rotary columns / 2, at most kMaxHead / 2
    int32_t original;            // length beyond which the kinds but STATIC change their frequencies
    int32_t sections[3];         // frequencies that turn by position row 0, 1, 2; all 0: row 0 alone
    bool interleaved_sections;   // rows take turns (0 1 2 0 1 2 …) instead of standing one after the other
    int32_t logn;                // positions from here on make a row larger, by log(position + 1) / log(logn); 0: none
    float attention_factor, factor, theta;
    const int32_t* positions;  // [position_rows][position_stride]
    int32_t position_rows, position_stride;
    const int32_t* prompt_len;  // [T] of the token's sequence; not for STATIC
};

// Rows [t0, t1). A row depends on its own positions and prompt length alone.
void rope_table(const RopeTableArgs& args, int t0, int t1);

}  // namespace di
