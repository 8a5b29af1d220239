// Attention over a quantized cache: cells of codes become cells of bf16 integers in L1, and those are multiplied as the
// cells of a bf16 cache are.
#pragma once
#include "attention.h"
#include "kv_codes.h"

namespace di {
namespace {

template <class Inner, int kBits>
class CodeTiles {
    using Codes = KvCodes<kBits>;

  public:
    using Operand = typename Inner::Operand;
    static constexpr size_t kCellBytes = Codes::kCellBytes;
    static constexpr bool kCodes = true;

    CodeTiles(int rows, float* room) : inner_(rows, nullptr), cells_(reinterpret_cast<bf16*>(room)) {}

    static DI_INLINE void put(Operand* to, Vec v) { Inner::put(to, v); }
    static DI_INLINE void put(Operand* to, Vec v, Vec next) { Inner::put(to, v, next); }

    void finish_scores() const {}
    void scores(const Operand* q, const CellRun& k, int cells, float* s, const uint8_t* ahead) const {
        for (int c = 0; c < cells; ++c) {
            Codes::expand_k(cells_ + c * kCellSize, k.data + c * kCellBytes, k.zeros,
                            ahead ? ahead + c * kCellBytes : nullptr);
        }
        inner_.scores(q, CellRun{reinterpret_cast<const uint8_t*>(cells_), nullptr}, cells, s, nullptr);
    }

    void values(const Operand* p, const CellRun* v, int groups, int cells, float* o, int width,
                const uint8_t* const* ahead) const {
        const uint8_t* const nothing[kStepGroups] = {};
        for (int c = 0; c < cells; c += kColumns) {
            const int columns = cells - c < kColumns ? cells - c : kColumns;
            CellRun expanded[kStepGroups];
            for (int g = 0; g < groups; ++g) {
                bf16* to = cells_ + g * kColumns * kCellSize;
                expanded[g] = CellRun{reinterpret_cast<const uint8_t*>(to), nullptr};
                for (int i = 0; i < columns; ++i) {
                    const size_t at = (c + i) * kCellBytes;
                    Codes::expand_v(to + i * kCellSize, v[g].data + at, v[g].zeros, ahead[g] ? ahead[g] + at : nullptr);
                }
            }
            inner_.values(p, expanded, groups, columns, o + c * kCell, width, nothing);
        }
    }

  private:
    static constexpr int kColumns = 2;  // cells of V that are expanded at a time
    static_assert(kExpandFloats * sizeof(float) >= kStepGroups * kColumns * kCellSize * sizeof(bf16), "V fits");
    static_assert(kExpandFloats * sizeof(float) >= kMaxHead / kCell * kCellSize * sizeof(bf16), "a group of K fits");

    Inner inner_;
    bf16* cells_;
};

}  // namespace
}  // namespace di
