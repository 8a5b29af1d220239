// Activations to integers: a scale and a sum for each row and group, and planes of bytes for the product.
#pragma once
#include "rows.h"

namespace di {
namespace {

// x / scale as x · high + x · low, where high + low is 1 / scale to twice the precision.
struct Inverse {
    float high, low;
};

// Of one row and group.
struct RowGrid {
    float scale;
    Inverse inverse;
    bool empty() const { return inverse.high == 0.0f; }  // all its integers are zero
};

DI_INLINE RowGrid row_grid(float largest, bool finite, int planes) {
    const float scale = largest / (planes == 2 ? 32512.0f : 127.0f);
    if (!finite) return {__builtin_nanf(""), {0.0f, 0.0f}};
    if (!(scale >= 0x1p-126f)) return {1.0f, {0.0f, 0.0f}};
    const float high = 1.0f / scale;
    return {scale, {high, __builtin_fmaf(-scale, high, 1.0f) * high}};
}

// Planes of more bytes go past the caches: the product would find nearly none of them there, and fetching a line before
// it is overwritten would take as long as reading x.
constexpr size_t kNear = size_t{2} << 20;

// One group: its place in K and in the planes.
struct Span {
    int k, count, cell, cells;

    int count_of(int c) const {
        const int left = count - c * kQuantCell;
        return left < 0 ? 0 : left < kQuantCell ? left : kQuantCell;
    }
};

// Rows of one band of the input, from its first row's element 0 on; a row is 32 elements.
template <class T>
struct BandReader {
    const Quantize& q;
    const T* x;
    size_t step;
    bool plain;  // elements lie side by side: any 32 from a multiple of 32 do

    BandReader(const Quantize& quantize, int m)
        : q(quantize),
          x(q.x.row<const T>(m)),
          step(q.x.step()),
          plain(!q.order && (q.head == 0 || q.head == q.padded_head)) {}

    // Elements [k, k + count), count <= 64, of the i-th row, and zeros after them.
    DI_INLINE void read(int i, int k, int count, Vec v[4]) const {
        const T* row = x + i * kCell;
        if (plain && count == kQuantCell && k % kCell == 0) {
            const T* at = row + k / kCell * step;
            v[0] = load16(at), v[1] = load16(at + 16);
            at += step;
            v[2] = load16(at), v[3] = load16(at + 16);
            return;
        }
        alignas(64) T raw[kQuantCell];
        gather(row, k, count, raw);
        for (int j = 0; j < 4; ++j) v[j] = load16(raw + 16 * j);
    }

    // The cell of 64 elements from k on, while the one before it is read: a cell is a page or two, too short for
    // hardware to find out about.
    DI_INLINE void prefetch(int i, int k) const {
        const char* at = reinterpret_cast<const char*>(x + i * kCell + k / kCell * step);
        for (size_t half = 0; half < 2; ++half, at += step * sizeof(T))
            for (size_t b = 0; b < kCell * sizeof(T); b += 64) __builtin_prefetch(at + b);
    }

  private:
    DI_NOINLINE void gather(const T* row, int k, int count, T* to) const {
        __builtin_memset(to, 0, kQuantCell * sizeof(T));
        for (int i = 0; i < count; ++i) {
            int c = q.order ? q.order[k + i] : k + i;
            if (q.head) c = c / q.head * q.padded_head + c % q.head;
            if (c < 0 || c >= q.x.cols) c = 0;  // an order that was never written: a wrong number, no read elsewhere
            to[i] = row[c / kCell * step + c % kCell];
        }
    }
};

// The scales of rows [m, m + rows) in one group.
template <class T>
DI_INLINE void find_grids(const BandReader<T>& x, int rows, const Span& s, int planes, RowGrid* grids) {
    alignas(64) float largest[kCell][16], wrong[kCell][16];
    __builtin_memset(largest, 0, static_cast<size_t>(rows) * sizeof largest[0]);
    __builtin_memset(wrong, 0, static_cast<size_t>(rows) * sizeof wrong[0]);
    for (int c = 0; c < s.cells; ++c) {
        for (int i = 0; i < rows; ++i) {
            Vec v[4], most = Vec::load(largest[i]), bad = Vec::load(wrong[i]);
            const int k = s.k + c * kQuantCell;
            x.read(i, k, s.count_of(c), v);
            x.prefetch(i, k + kQuantCell);
            for (const Vec& e : v) {
                most = max(abs(e), most);
                bad = fma(e, Vec::zero(), bad);  // NaN where e is not finite
            }
            most.store(largest[i]);
            bad.store(wrong[i]);
        }
    }
    for (int i = 0; i < rows; ++i) {
        const bool finite = !is_nan(Vec::load(wrong[i])).any();
        grids[i] = row_grid(Vec::load(largest[i]).reduce_max(), finite, planes);
    }
}

template <class T, bool kTwo>
DI_INLINE void quantize_group(const Quantize& q, int m, int rows, int group, int groups, const Span& s) {
    const BandReader<T> x(q, m);
    RowGrid grids[kCell];
    find_grids(x, rows, s, kTwo ? 2 : 1, grids);
    alignas(64) int32_t sums[kCell][16];
    __builtin_memset(sums, 0, static_cast<size_t>(rows) * sizeof sums[0]);
    const size_t plane = static_cast<size_t>(q.y.band()) * kQuantCell, cell_bytes = plane * (kTwo ? 2 : 1);
    int8_t* cell = q.y.row(m, s.cell, 0);
    const bool past = q.y.bytes() > kNear;
    for (int c = 0; c < s.cells; ++c, cell += cell_bytes) {
        int8_t* to = cell;
        for (int i = 0; i < rows; ++i, to += kQuantCell) {
            Vec v[4];
            x.read(i, s.k + c * kQuantCell, s.count_of(c), v);
            const Vec high = Vec::set(grids[i].inverse.high), low = Vec::set(grids[i].inverse.low);
            const Vec::Mask filled = Vec::first_n(grids[i].empty() ? 0 : 16);
            for (size_t b = 0; !past && b < cell_bytes; b += plane) __builtin_prefetch(to + cell_bytes + b, 1);
            for (Vec& e : v) {
                e = select(filled, e, Vec::zero());
                e = fma(e, high, e * low);
            }
            const Integers a = Integers::rounded(v);
            a.add_to(sums[i]);
            kTwo ? a.store(to, to + plane, past) : a.store(to, past);
        }
    }
    const auto column = [&](int c) { return q.grid.row<float>(m) + c / kCell * q.grid.step() + c % kCell; };
    float *scales = column(group), *integers = column(groups + group);
    for (int i = 0; i < rows; ++i, scales += kCell, integers += kCell) {
        int32_t sum = 0;
        for (int32_t lane : sums[i]) sum += lane;
        *scales = grids[i].scale;
        __builtin_memcpy(integers, &sum, sizeof sum);
    }
}

void quantize(const Quantize& q, int m0, int m1) {
    const int groups = (q.k + q.group - 1) / q.group, group_cells = (q.group + kQuantCell - 1) / kQuantCell;
    by_type(q.x.dtype, [&](auto tag) {
        using T = TypeOf<decltype(tag)>;
        for_bands(q.x, m0, m1, [&](int m, int rows) {
            for (int g = 0; g < groups; ++g) {
                const int left = q.k - g * q.group, count = left < q.group ? left : q.group;
                const int cell = g * group_cells, cells = g + 1 < groups ? group_cells : q.y.cells - cell;
                const Span span{g * q.group, count, cell, cells};
                q.y.count == 2 ? quantize_group<T, true>(q, m, rows, g, groups, span)
                               : quantize_group<T, false>(q, m, rows, g, groups, span);
            }
        });
    });
    Integers::settle();
}

}  // namespace
}  // namespace di
