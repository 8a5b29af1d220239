// How many rows are cut into blocks that fit the caches: what bf16 and quantized products share.
#pragma once
#include "../generic/inline.h"
#include "../kernels.h"

namespace di {
namespace {

constexpr int kGroupPanels = 8;                     // panels of a group: they share the rows' block in L2
constexpr int kChunkBands = 16;                     // bands of 32 rows of a chunk
constexpr size_t kResidentBytes = size_t{1} << 20;  // of a chunk that stays in L2 with all its columns

static_assert(2 * kGroupPanels * kChunkBands * kCellSize <= Gemm::scratch_floats());

// Even parts: part i of `count` things in `parts`.
DI_INLINE int part_begin(int count, int parts, int i) {
    return static_cast<int>(static_cast<int64_t>(count) * i / parts);
}
DI_INLINE int parts_of(int count, int largest) { return (count + largest - 1) / largest; }

// Whether a chunk of so many bands stays in L2: panel after panel passes by it, a group of its own. Other chunks come
// block by block of K, for which a group of panels is gathered.
DI_INLINE bool is_resident(int bands, size_t band_bytes) {
    return static_cast<size_t>(bands < kChunkBands ? bands : kChunkBands) * band_bytes <= kResidentBytes;
}

// Cache lines to fetch, a few at a time between tile instructions.
struct Lines {
    const char* at = nullptr;
    const char* end = nullptr;

    // The next n lines, even beyond the end.
    template <int kWrite, int kLocality>
    DI_INLINE void fetch(int n) {
        // Mostly there are none, one or two, for which a loop is too much.
        if (n == 0) return;
        __builtin_prefetch(at, kWrite, kLocality);
        if (n > 1) __builtin_prefetch(at + 64, kWrite, kLocality);
        for (int i = 2; i < n; ++i) __builtin_prefetch(at + 64 * i, kWrite, kLocality);
        at += 64 * n;
    }
    bool is_done() const { return at >= end; }
    // Lines a step, to be done in n steps.
    int share(int n) const { return static_cast<int>((end - at) / 64 + n - 1) / n; }
};

}  // namespace
}  // namespace di
