// The AVX-VNNI tier: AVX2's kernels, with quantized products of bytes.
#include "../avx2/vec.h"

#include "../avx2/bytes.h"
#include "../generic/gemm_quant.h"

namespace di {
namespace {

KernelTable avxvnni_kernels() {
    KernelTable t = *avx2_table();
    t.name = "avxvnni";
    t.gemm_quant = gemm_quant<ByteDot<Ymm>>;
    return t;
}

}  // namespace

const KernelTable* avxvnni_table() {
    static const KernelTable table = avxvnni_kernels();
    return &table;
}

}  // namespace di
