// The AMX tier: AVX512-VNNI's kernels, with bf16 and quantized products on tiles.
#include "../avx512/vec.h"

#include "attention.h"
#include "gemm_bf16.h"
#include "gemm_quant.h"
#include "tile.h"

namespace di {
namespace {

KernelTable amx_kernels() {
    KernelTable t = *avx512vnni_table();
    t.name = "amx";
    t.gemm_bf16 = gemm_bf16_amx;
    t.gemm_quant = gemm_quant_amx;
    t.attention_bf16 = attention_bf16_amx;
    t.attention_u8 = attention_u8_amx;
    t.attention_u4 = attention_u4_amx;
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
