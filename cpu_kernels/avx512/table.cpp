#include "vec.h"

#include "../generic/table.h"

namespace di {

const KernelTable* avx512_table() {
    static constexpr KernelTable table = generic_table("avx512");
    return &table;
}

}  // namespace di
