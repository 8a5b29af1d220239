// The AVX512-VNNI tier: AVX-512's kernels, with quantized products of bytes.
#include "../avx512/vec.h"

#include "../avx512/bytes.h"
#include "../generic/gemm_quant.h"

namespace di {
namespace {

KernelTable avx512vnni_kernels() {
    KernelTable t = *avx512_table();
    t.name = "avx512vnni";
    t.gemm_quant = gemm_quant<ByteDot<Zmm>>;
    return t;
}

}  // namespace

const KernelTable* avx512vnni_table() {
    static const KernelTable table = avx512vnni_kernels();
    return &table;
}

}  // namespace di
