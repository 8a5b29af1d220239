#include "vec.h"

#include "bytes.h"
#include "../generic/table.h"

namespace di {

const KernelTable* avx512_table() {
    static constexpr KernelTable table = generic_table<WordDot<Zmm>>("avx512");
    return &table;
}

}  // namespace di
