#include "vec.h"

#include "../generic/table.h"

namespace di {

const KernelTable* scalar_table() {
    static constexpr KernelTable table = generic_table<PlainDot>("scalar");
    return &table;
}

}  // namespace di
