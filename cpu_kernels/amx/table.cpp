// The AMX tier: AVX-512's kernels, with bf16 products on tiles.
#include "../avx512/vec.h"

#include "attention_bf16.h"
#include "gemm_bf16.h"
#include "tile.h"

namespace di {
namespace {

KernelTable amx_kernels() {
    KernelTable t = *avx512_table();
    t.name = "amx";
    t.gemm_bf16 = gemm_bf16_amx;
    t.attention_bf16 = attention_bf16_amx;
    t.matrix_peak = matrix_peak_amx;
    t.release = release_tiles;
    return t;
}

}  // namespace

const KernelTable* amx_table() {
    static const KernelTable table = amx_kernels();
    return &table;
}

}  // namespace di
