// Exact integer products of activations and the codes of a panel. Three ways to the same sums: bytes with bytes where
// the processor adds four such products to a dword; else words with words, both planes at once; or, for codes of 4 bits
// and one row, bytes with bytes in pairs.
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
//   Nibbles: the policy for codes of 4 bits and one row
//   kLines, kWords: the lines that one pass takes, and whether they are words
//   add<kRows, kPlanes, kNibbles>: sums += x · the cells at w; `cold`: w comes from memory
//
// The definition, in plain C++.
struct PlainDot {
    using Nibbles = PlainDot;
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

// What the policies over registers share: the walk over a cell. V is a register of bytes. A single row takes the halves
// one after the other, in the order of memory.
template <class V, bool kNibbles, bool kSingle>
struct Walk {
    static constexpr int kParts = 64 / V::kBytes;  // registers of 16 outputs times 4 k

    // As many halves of a panel at a time as leave registers for the codes.
    static constexpr int halves(int lines) { return !kSingle && 2 * lines * kParts <= V::kSums ? 2 : 1; }

    // f(r, i, codes) for k in [4r, 4r + 4) and register i of kHalves halves, in some of a cell's lines.
    template <int kHalves, class F>
    static DI_INLINE void lines(const uint8_t* w, int half, int begin, int end, bool cold, F f) {
        constexpr size_t kHalf = code_bytes(kNibbles) / 2;
        constexpr size_t kAhead = 4096;  // bytes from a prefetch to its use
#pragma GCC unroll 8
        for (int r = begin; r < end; ++r) {
            for (int i = 0; i < kHalves * kParts; ++i) {
                const uint8_t* at = w + (half + i / kParts) * kHalf + r * 64 + i % kParts * V::kBytes;
                const V q = V::load(at);
                if (i % kParts == 0 && cold) kSingle ? prefetch_in_place(at + kAhead) : __builtin_prefetch(at + kAhead);
                if (kNibbles) {
                    f(r, i, q.low_nibbles());
                    f(r + 8, i, q.high_nibbles());
                } else {
                    f(r, i, q);
                }
            }
        }
    }

    template <int kHalves, class F>
    static DI_INLINE void cell(const uint8_t* w, int half, bool cold, F f) {
        lines<kHalves>(w, half, 0, kNibbles ? 8 : 16, cold, f);
    }
};

template <class V>
struct ByteDot {
    using Nibbles = ByteDot;
    static constexpr int kLines = V::kSums * V::kBytes / 128;
    static constexpr bool kWords = false;

    template <int kRows, int kPlanes, bool kNibbles>
    static void add(const Operand& x, const uint8_t* w, int cells, bool cold, int32_t* sums) {
        constexpr int kHalves = Walk<V, kNibbles, kRows == 1>::halves(kRows * kPlanes);
        constexpr int kBlock = kHalves == 2 ? 1 << 20 : 8;
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
        using Cells = Walk<V, kNibbles, kRows == 1>;
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

// One row and codes of 4 bits: the products of a pair add up to at most 15 · 2 · 128, and eight such sums fit a word.
template <class V>
struct PairDot {
    static constexpr bool kWords = false;

    template <int kRows, int kPlanes, bool kNibbles>
    static void add(const Operand& x, const uint8_t* w, int cells, bool cold, int32_t* sums) {
        static_assert(kRows == 1 && kNibbles);
        for (int c = 0; c < cells; ++c, w += code_bytes(true)) {
            const Operand from{x.x + c * x.cell, x.cell, x.plane};
            for (int half = 0; half < 2; ++half) {
                for (int r = 0; r < 8; r += kDeep) add_lines<kPlanes>(from, w, half, r, cold, sums + 16 * half);
            }
        }
    }

  private:
    static constexpr int kDeep = 4;  // lines, of two pairs each

    template <int kPlanes>
    static DI_INLINE void add_lines(const Operand& x, const uint8_t* w, int half, int begin, bool cold, int32_t* sums) {
        using Cells = Walk<V, true, true>;
        V words[Cells::kParts][kPlanes];
        for (int i = 0; i < Cells::kParts * kPlanes; ++i) words[i / kPlanes][i % kPlanes] = V::zero();
        Cells::template lines<1>(w, half, begin, begin + kDeep, cold, [&](int r, int i, V codes) {
            for (int l = 0; l < kPlanes; ++l) {
                words[i][l] = words[i][l].add_pairs(codes, V::broadcast(x.x + l * x.plane + 4 * r));
            }
        });
        for (int i = 0; i < Cells::kParts; ++i) {
            for (int l = 0; l < kPlanes; ++l) {
                int32_t* to = sums + l * kCell + i * V::kBytes / 4;
                V::load(to).add_products(words[i][l], V::ones()).store(to);
            }
        }
    }
};

// Words lie as masks and shifts split the codes: of each cell first those with even k, then the others.
template <class V>
struct WordDot {
    using Nibbles = PairDot<V>;
    static constexpr int kLines = V::kSums * V::kBytes / 128;
    static constexpr bool kWords = true;

    // The words of a row in one cell; `high` is null with one plane.
    static void join(const int8_t* high, const int8_t* low, int16_t* to) {
        int16_t h[kQuantCell / 2] = {}, l[kQuantCell / 2];
        if (high) __builtin_memcpy(h, high, sizeof h);
        __builtin_memcpy(l, low, sizeof l);
        for (int i = 0; i < kQuantCell / 2; ++i) {
            to[i] = static_cast<int16_t>(static_cast<uint16_t>(h[i]) * 256 + static_cast<int8_t>(l[i]));
            to[kQuantCell / 2 + i] = static_cast<int16_t>((h[i] & ~255) + (l[i] >> 8));
        }
    }

    template <int kRows, int kPlanes, bool kNibbles>
    static void add(const Operand& x, const uint8_t* w, int cells, bool cold, int32_t* sums) {
        // A sum stays within 31 bits for so many cells: 64 · 4 · 255 · 32512, or 64 · 64 · 15 · 32512.
        constexpr int kHalves = Walk<V, kNibbles, kRows == 1>::halves(kRows);
        constexpr int kBlock = kPlanes == 1 ? 8 : kNibbles ? 8 : 4;
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
        using Cells = Walk<V, kNibbles, kRows == 1>;
        constexpr int kRegisters = kHalves * Cells::kParts, kLanes = V::kBytes / 4;
        V sum[kRegisters][kRows];
        for (int i = 0; i < kRegisters * kRows; ++i) sum[i / kRows][i % kRows] = V::zero();
        const int8_t* a = x.x;
        for (int c = 0; c < cells; ++c, a += x.cell, w += code_bytes(kNibbles)) {
            Cells::template cell<kHalves>(w, half, cold, [&](int r, int i, V codes) {
                const V even = codes.even_bytes(), odd = codes.odd_bytes();
                for (int l = 0; l < kRows; ++l) {
                    const int8_t* at = a + l * 2 * kQuantCell + 4 * r;
                    sum[i][l] = sum[i][l].add_products(even, V::broadcast(at));
                    sum[i][l] = sum[i][l].add_products(odd, V::broadcast(at + kQuantCell));
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
