// Exact integer products of activations and the codes of a panel. Two ways to the same sums: bytes with bytes, a plane
// at a time, where the processor adds four such products to a dword; else words with words, both planes at once.
#pragma once
#include "../layout.h"
#include "inline.h"

namespace di {
namespace {

// Lines of activations, one a row and plane, 64 bytes a cell; or, as words, one a row of 128 bytes.
struct Operand {
    const int8_t* x;
    size_t cell, plane;  // bytes to the next cell and to the next plane
};

constexpr size_t code_bytes(bool nibbles) { return nibbles ? 1024 : 2048; }  // of a cell

// Every policy has these. `sums` is [kPlanes][kRows][32]; with two planes a sum is 256 · the first + the second.
//   kLines, kWords: the lines that one pass takes, and whether they are words
//   add<kRows, kPlanes, kNibbles>: sums += x · the cells at w; `cold`: w comes from memory
//
// The definition, in plain C++.
struct PlainDot {
    static constexpr int kLines = 2;
    static constexpr bool kWords = false;

    template <int kRows, int kPlanes, bool kNibbles>
    static void add(const Operand& x, const uint8_t* w, int cells, bool, int32_t* sums) {
        for (int c = 0; c < cells; ++c, w += code_bytes(kNibbles)) {
            for (int line = 0; line < kPlanes * kRows; ++line) {
                const int8_t* a = x.x + c * x.cell + line / kRows * x.plane + line % kRows * kQuantCell;
                for (int i = 0; i < 2 * 16; ++i) add_line<kNibbles>(a, w, i / 16, i % 16, sums + line * kCell);
            }
        }
    }

  private:
    // Columns k of [4r, 4r + 4) for the 16 outputs of a half.
    template <bool kNibbles>
    static DI_INLINE void add_line(const int8_t* a, const uint8_t* w, int half, int r, int32_t* sums) {
        const uint8_t* q = w + half * code_bytes(kNibbles) / 2 + (kNibbles ? r % 8 : r) * 64;
        for (int n = 0; n < 16; ++n) {
            int32_t sum = 0;
            for (int d = 0; d < 4; ++d) {
                const int code = kNibbles ? q[4 * n + d] >> (r < 8 ? 0 : 4) & 15 : q[4 * n + d];
                sum += code * a[4 * r + d];
            }
            sums[16 * half + n] += sum;
        }
    }
};

// What the two policies over registers share: the walk over a cell. V is a register of bytes.
template <class V, bool kNibbles>
struct Walk {
    static constexpr int kParts = 64 / V::kBytes;  // registers of 16 outputs times 4 k

    // f(r, i, codes) for k in [4r, 4r + 4) and register i of kHalves halves.
    template <int kHalves, class F>
    static DI_INLINE void cell(const uint8_t* w, int half, bool cold, F f) {
        constexpr size_t kHalf = code_bytes(kNibbles) / 2;
        constexpr size_t kAhead = 4096;  // bytes from a prefetch to its use
#pragma GCC unroll 8
        for (int r = 0; r < (kNibbles ? 8 : 16); ++r) {
            for (int i = 0; i < kHalves * kParts; ++i) {
                const uint8_t* at = w + (half + i / kParts) * kHalf + r * 64 + i % kParts * V::kBytes;
                const V q = V::load(at);
                if (i % kParts == 0 && cold) __builtin_prefetch(at + kAhead);
                if (kNibbles) {
                    f(r, i, q.low_nibbles());
                    f(r + 8, i, q.high_nibbles());
                } else {
                    f(r, i, q);
                }
            }
        }
    }
};

// As many halves of a panel at a time as leave registers for the codes.
template <class V>
constexpr int halves_of(int lines) {
    return 2 * lines * (64 / V::kBytes) <= V::kSums ? 2 : 1;
}

template <class V>
struct ByteDot {
    static constexpr int kLines = V::kSums * V::kBytes / 128;
    static constexpr bool kWords = false;

    template <int kRows, int kPlanes, bool kNibbles>
    static void add(const Operand& x, const uint8_t* w, int cells, bool cold, int32_t* sums) {
        constexpr int kHalves = halves_of<V>(kRows * kPlanes), kBlock = kHalves == 2 ? 1 << 20 : 8;
        for (int c = 0; c < cells; c += kBlock) {
            const int n = cells - c < kBlock ? cells - c : kBlock;
            const Operand from{x.x + c * x.cell, x.cell, x.plane};
            for (int half = 0; half < 2; half += kHalves) {
                add_halves<kRows, kPlanes, kNibbles, kHalves>(from, w + c * code_bytes(kNibbles), n, half, cold, sums);
            }
        }
    }

  private:
    template <int kRows, int kPlanes, bool kNibbles, int kHalves>
    static DI_INLINE void add_halves(const Operand& x, const uint8_t* w, int cells, int half, bool cold,
                                     int32_t* sums) {
        using Cells = Walk<V, kNibbles>;
        constexpr int kRegisters = kHalves * Cells::kParts, kLanes = V::kBytes / 4;
        V sum[kRegisters][kPlanes * kRows];
        for (int i = 0; i < kRegisters; ++i) {
            for (int l = 0; l < kPlanes * kRows; ++l) sum[i][l] = V::load(sums + l * kCell + 16 * half + i * kLanes);
        }
        const int8_t* a = x.x;
        for (int c = 0; c < cells; ++c, a += x.cell, w += code_bytes(kNibbles)) {
            Cells::template cell<kHalves>(w, half, cold, [&](int r, int i, V codes) {
                for (int l = 0; l < kPlanes * kRows; ++l) {
                    const int8_t* at = a + l / kRows * x.plane + l % kRows * kQuantCell + 4 * r;
                    sum[i][l] = sum[i][l].dot(codes, V::broadcast(at));
                }
            });
        }
        for (int i = 0; i < kRegisters; ++i) {
            for (int l = 0; l < kPlanes * kRows; ++l) sum[i][l].store(sums + l * kCell + 16 * half + i * kLanes);
        }
    }
};

// Words come in the order k = 0, 2, 1, 3 of each four: pairs as the even and the odd bytes of the codes.
template <class V>
struct WordDot {
    static constexpr int kLines = V::kSums * V::kBytes / 128;
    static constexpr bool kWords = true;

    template <int kRows, int kPlanes, bool kNibbles>
    static void add(const Operand& x, const uint8_t* w, int cells, bool cold, int32_t* sums) {
        // A sum stays within 31 bits for so many cells: 64 · 4 · 255 · 32512, or 64 · 64 · 15 · 32512.
        constexpr int kHalves = halves_of<V>(kRows), kBlock = kPlanes == 1 ? 8 : kNibbles ? 8 : 4;
        for (int c = 0; c < cells; c += kBlock) {
            const int n = cells - c < kBlock ? cells - c : kBlock;
            const Operand from{x.x + c * x.cell, x.cell, 0};
            for (int half = 0; half < 2; half += kHalves) {
                add_halves<kRows, kPlanes, kNibbles, kHalves>(from, w + c * code_bytes(kNibbles), n, half, cold, sums);
            }
        }
    }

  private:
    template <int kRows, int kPlanes, bool kNibbles, int kHalves>
    static DI_INLINE void add_halves(const Operand& x, const uint8_t* w, int cells, int half, bool cold,
                                     int32_t* sums) {
        using Cells = Walk<V, kNibbles>;
        constexpr int kRegisters = kHalves * Cells::kParts, kLanes = V::kBytes / 4;
        V sum[kRegisters][kRows];
        for (int i = 0; i < kRegisters * kRows; ++i) sum[i / kRows][i % kRows] = V::zero();
        const int8_t* a = x.x;
        for (int c = 0; c < cells; ++c, a += x.cell, w += code_bytes(kNibbles)) {
            Cells::template cell<kHalves>(w, half, cold, [&](int r, int i, V codes) {
                const V even = codes.even_bytes(), odd = codes.odd_bytes();
                for (int l = 0; l < kRows; ++l) {
                    const int8_t* at = a + l * 2 * kQuantCell + 8 * r;
                    sum[i][l] = sum[i][l].add_products(even, V::broadcast(at));
                    sum[i][l] = sum[i][l].add_products(odd, V::broadcast(at + 4));
                }
            });
        }
        for (int i = 0; i < kRegisters; ++i) {
            for (int l = 0; l < kRows; ++l) {
                int32_t* to = sums + l * kCell + 16 * half + i * kLanes;
                if (kPlanes == 1) {
                    V::load(to).add(sum[i][l]).store(to);
                } else {
                    V::load(to).add(sum[i][l].shift_8()).store(to);
                    to += kRows * kCell;
                    V::load(to).add(sum[i][l].low_8()).store(to);
                }
            }
        }
    }
};

}  // namespace
}  // namespace di
