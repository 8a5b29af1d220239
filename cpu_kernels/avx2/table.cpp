#include "vec.h"

#include "bytes.h"
#include "../generic/table.h"

namespace di {

const KernelTable* avx2_table() {
    static constexpr KernelTable table = generic_table<WordDot<Ymm>>("avx2");
    return &table;
}

}  // namespace di
