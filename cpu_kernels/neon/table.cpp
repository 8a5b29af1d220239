#include "vec.h"

#include "../generic/table.h"

namespace di {

const KernelTable* neon_table() {
    static constexpr KernelTable table = generic_table<PlainDot>("neon");
    return &table;
}

}  // namespace di
