// The AVX512-BF16 tier: AVX512-VNNI's kernels, with bf16 products and attention in pairs.
#include "../avx512/vec.h"

#include "attention.h"
#include "gemm_bf16.h"

namespace di {
namespace {

KernelTable avx512bf16_kernels() {
    KernelTable t = *avx512vnni_table();
    t.name = "avx512bf16";
    t.gemm_bf16 = gemm_bf16_pairs;
    t.attention_bf16 = attention_bf16_pairs;
    t.attention_u8 = attention_u8_pairs;
    t.attention_u4 = attention_u4_pairs;
    t.matrix_peak = matrix_peak_pairs;
    return t;
}

}  // namespace

const KernelTable* avx512bf16_table() {
    static const KernelTable table = avx512bf16_kernels();
    return &table;
}

}  // namespace di
