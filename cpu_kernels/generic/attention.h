// Attention over the paged cache, for prefill, chunks and decode alike. A task is up to 32 query rows of one sequence
// and KV head:
//   softmax(mask(cap(scale · q[rows, D] · k[T, D]ᵀ) + slope · t)) · v[T, D] → y[rows, D]
// Scores are logarithms to base 2: scale, cap, slope and sinks take a factor of log2(e).
//
// The order of every operation is docs/arithmetic.md's: cache positions in steps of 256 and splits of 1024, aligned to
// absolute positions. A row's bits do not depend on its tile, its chunk of the prompt or who computes its splits:
// - what no row of the tile sees is skipped; a row that sees nothing of a step or split is not changed by it;
// - splits merge in ascending order here as in attention_merge;
// - a sink is what split 0 starts from (m = sink, l = 1, O = 0), also where nothing else of split 0 is seen.
//
// The two products are a policy's. `Tiles` has
//   Operand                        what q and p are kept in
//   kCellBytes, kCodes             bytes of a cell of the cache; whether it holds codes, with scales and zero points
//   Tiles(int rows, float* room)   `room` holds kExpandFloats floats
//   put(Operand*, Vec), put(Operand*, Vec, Vec)    16 or 32 values, rounded to the cache's type
//   scores(q, k, cells, s, ahead)
//       s[rows, 32] = q[rows, D] · k[32, D]ᵀ; rows of s are kScoreStride apart
//   finish_scores()                they need not be in memory before
//   values(p, v, groups, cells, o, width, ahead)
//       o[rows, 32 · cells] += p[rows, 32 · groups] · v; rows of o are `width` apart, rows of p kScoreStride floats:
//       probabilities take the place of their scores, and both stay in L1
// q is cells [32 rows][32]; k and v[i] are `cells` cells; `ahead` is where as many lie that are to be prefetched, or
// null. With codes the products are of integers (code - zero point): the walk multiplies scores by the
// scales of K, and probabilities by those of V.
#pragma once
#include "elementwise.h"
#include "rows.h"

namespace di {
namespace {

constexpr int kStepGroups = kSoftmaxStep / kCell;
constexpr int kScoreStride = kSoftmaxStep + 16;            // rows of scores a step apart would share their cache sets
constexpr size_t kExpandFloats = kMaxTileRows * kMaxHead;  // two cells as bf16 for each group of a step

// K or V of 32 cache positions: a run of cells. Where they hold codes, the positions' zero points.
struct CellRun {
    const uint8_t* data;
    const float* zeros;

    template <class T>
    const T* as() const {
        return reinterpret_cast<const T*>(data);
    }
};

// Softmax state of a tile: layout of a partial.
struct SoftmaxState {
    float* o;  // [32][padded head]
    float* m;  // [32] largest score
    float* l;  // [32] sum of 2^(score - m)

    SoftmaxState(float* base, int padded_head) : o(base), m(base + kMaxTileRows * padded_head), l(m + kMaxTileRows) {}
};

// 2^(m - to) where `to` is a maximum that m took part in: 1 where they are equal, also both -inf.
DI_INLINE Vec decay(Vec m, Vec to) { return exp2(select(less(m, to), m - to, Vec::zero())); }

// (m, l, o) of one row takes in another's.
DI_INLINE void merge_row(float& m, float& l, float* o, float m2, float l2, const float* o2, int padded_head) {
    const float top = max(Vec::set(m), Vec::set(m2)).lane(0);
    const Vec a = decay(Vec::set(m), Vec::set(top)), b = decay(Vec::set(m2), Vec::set(top));
    l = fma(Vec::set(l), a, Vec::set(l2) * b).lane(0);
    for (int d = 0; d < padded_head; d += 16) fma(Vec::load(o + d), a, Vec::load(o2 + d) * b).store(o + d);
    m = top;
}

DI_INLINE int query_head(const Attention& a, const AttentionTask& t, int r) {
    const int group = a.q_heads / a.kv_heads;
    return t.kv_head * group + (t.row0 + r) % group;
}

// y = O / l, without negative zeros; a row that saw nothing gives 0.
DI_INLINE void write_row(const Attention& a, const AttentionTask& t, int r, float l, const float* o) {
    const int group = a.q_heads / a.kv_heads, token = t.token0 + (t.row0 + r) / group;
    const size_t first = static_cast<size_t>(query_head(a, t, r)) * (a.padded_head / kCell) * a.y.step();
    const Vec divisor = Vec::set(l == 0.0f ? 1.0f : l);
    by_type(a.y.dtype, [&](auto ty) {
        auto* y = a.y.row<TypeOf<decltype(ty)>>(token) + first;
        for (int d = 0; d < a.padded_head; d += kCell, y += a.y.step()) {
            store16(y, Vec::load(o + d) / divisor + Vec::zero());
            store16(y + 16, Vec::load(o + d + 16) / divisor + Vec::zero());
        }
    });
}

template <class Tiles>
class AttentionTile {
    using Operand = typename Tiles::Operand;

  public:
    AttentionTile(const Attention& a, const AttentionTask& t, float* scratch)
        : a_(a),
          t_(t),
          rows_(t.row1 - t.row0),
          cells_(a.padded_head / kCell),
          tiles_(rows_, scratch + kNeeded - kExpandFloats),
          pool_(a.kv.pool) {
        q_ = reinterpret_cast<Operand*>(scratch);
        s_ = scratch + kOperandFloats;
        states_ = s_ + kMaxTileRows * kScoreStride;
        static_assert(kNeeded <= attention_scratch_floats(), "the caller's scratch holds q, s, two states, two cells");
        group_bytes_ = static_cast<size_t>(cells_) * Tiles::kCellBytes;
        half_bytes_ = a.kv.half_bytes();
        head_offset_ = static_cast<size_t>(a.kv.k(0, a.layer, t.kv_head) - a.kv.pool);
        block_bytes_ = a.kv.block_bytes();
        look_around();
        load_q();
    }

    void run() {
        if (t_.partial) {
            const SoftmaxState state(t_.partial, a_.padded_head);
            start(state, t_.split0 == 0);
            split(t_.split0, state);
            return;
        }
        const int width = a_.padded_head;
        const SoftmaxState total(states_, width), part(states_ + partial_floats(width), width);
        start(total, true);
        bool apart = false;  // total holds a split, or the sink of an earlier one
        for (int i = t_.split0; i < t_.split1; ++i) {
            if (i * kSplit >= last_ || (i + 1) * kSplit <= first_) continue;
            apart |= a_.sinks && i > 0;
            if (apart) start(part, false);
            split(i, apart ? part : total);
            if (apart) {
                for (int r = 0; r < rows_; ++r) {
                    merge_row(total.m[r], total.l[r], row(total, r), part.m[r], part.l[r], row(part, r), width);
                }
            }
            apart = true;
        }
        for (int r = 0; r < rows_; ++r) write_row(a_, t_, r, total.l[r], row(total, r));
    }

  private:
    static constexpr size_t kOperandFloats = kMaxTileRows * kMaxHead;
    static constexpr size_t kNeeded =
        kOperandFloats + kMaxTileRows * kScoreStride + 2 * partial_floats(kMaxHead) + kExpandFloats;

    float* row(const SoftmaxState& state, int r) const { return state.o + r * a_.padded_head; }

    // Which cache positions each row, some row, and every row see: [begin, end), [first, last), [all_begin, all_end).
    void look_around() {
        const int group = a_.q_heads / a_.kv_heads;
        first_ = all_end_ = t_.kv_len;
        last_ = all_begin_ = 0;
        for (int r = 0; r < rows_; ++r) {
            const int index = t_.kv_base + (t_.row0 + r) / group;
            int end = index < t_.bidirectional ? t_.bidirectional : index + 1;
            if (end > t_.kv_len) end = t_.kv_len;
            const int begin = a_.window > 0 && index >= a_.window ? index - a_.window + 1 : 0;
            begin_[r] = begin;
            end_[r] = end;
            if (begin < first_) first_ = begin;
            if (end > last_) last_ = end;
            if (begin > all_begin_) all_begin_ = begin;
            if (end < all_end_) all_end_ = end;
        }
    }

    void load_q() {
        const int group = a_.q_heads / a_.kv_heads;
        const Vec factor = Vec::set(a_.scale * kLog2E);
        for (int r = 0; r < rows_; ++r) {
            const float* q = a_.q.row<float>(t_.token0 + (t_.row0 + r) / group);
            q += static_cast<size_t>(query_head(a_, t_, r)) * cells_ * a_.q.step();
            for (int c = 0; c < cells_; ++c, q += a_.q.step()) {
                Operand* to = q_ + c * kCellSize + r * kCell;
                Tiles::put(to, Vec::load(q) * factor);
                Tiles::put(to + 16, Vec::load(q + 16) * factor);
            }
        }
    }

    void start(const SoftmaxState& state, bool with_sink) const {
        for (int r = 0; r < rows_; ++r) {
            const bool sink = with_sink && a_.sinks;
            state.m[r] = sink ? a_.sinks[query_head(a_, t_, r)] * kLog2E : -__builtin_inff();
            state.l[r] = sink ? 1.0f : 0.0f;
            for (int d = 0; d < a_.padded_head; d += 16) Vec::zero().store(row(state, r) + d);
        }
        for (int r = rows_; r < kMaxTileRows; ++r) state.m[r] = state.l[r] = 0.0f;
    }

    // K of the 32 positions from `position` on; V lies half_bytes_ further.
    const uint8_t* group_at(int position) const {
        return head_at(position) + static_cast<size_t>(position % a_.kv.block_tokens / kCell) * group_bytes_;
    }
    // The scales of K for those positions; a block's length further the zero points of K, then the two rows of V.
    const float* grid_at(int position) const {
        return reinterpret_cast<const float*>(head_at(position) + 2 * half_bytes_) + position % a_.kv.block_tokens;
    }
    const uint8_t* head_at(int position) const {
        return pool_ + static_cast<size_t>(t_.blocks[position / a_.kv.block_tokens]) * block_bytes_ + head_offset_;
    }

    void split(int index, const SoftmaxState& state) {
        for (int s0 = index * kSplit; s0 < (index + 1) * kSplit; s0 += kSoftmaxStep) {
            if (s0 < last_ && s0 + kSoftmaxStep > first_) step(s0, state);
        }
    }

    // Positions [s0, s0 + 256): scores, online softmax, values; only the groups of 32 that some row sees.
    void step(int s0, const SoftmaxState& state) {
        const int g0 = first_ > s0 ? (first_ - s0) / kCell : 0;
        const int g1 = last_ < s0 + kSoftmaxStep ? (last_ - s0 + kCell - 1) / kCell : kStepGroups;
        const int limit = last_ < t_.split1 * kSplit ? last_ : t_.split1 * kSplit;
        CellRun v[kStepGroups];
        const uint8_t* next[kStepGroups];
        for (int g = g0; g < g1; ++g) {
            const int at = s0 + g * kCell, after = at + kSoftmaxStep;
            CellRun k{group_at(at), nullptr};
            v[g] = {k.data + half_bytes_, nullptr};
            next[g] = after < limit ? group_at(after) : nullptr;
            if constexpr (Tiles::kCodes) take_grid(g, at, after < limit ? after : at, k, v[g]);
            tiles_.scores(q_, k, cells_, s_ + g * kCell, v[g].data);
        }
        tiles_.finish_scores();
        const bool whole = s0 >= all_begin_ && s0 + kSoftmaxStep <= all_end_;
        const PerRow tops = whole ? maxima<true>(s0, state) : maxima<false>(s0, state);
        PerRow factors, sums{};
        for (int i = 0; i < kMaxTileRows; i += 16) {
            decay(Vec::load(state.m + i), Vec::load(tops.v + i)).store(factors.v + i);
        }
        bool rescales = false;
        for (int i = 0; i < kMaxTileRows; i += 16) {
            rescales |= (!equal(Vec::load(factors.v + i), Vec::set(1.0f))).any();
        }
        for (int r = 0; r < rows_; ++r) {
            sums.v[r] =
                whole ? probabilities<true>(r, s0, g0, g1, tops.v[r]) : probabilities<false>(r, s0, g0, g1, tops.v[r]);
            if (rescales) {
                const Vec f = Vec::set(factors.v[r]);
                float* o = row(state, r);
                for (int d = 0; d < a_.padded_head; d += 16) (Vec::load(o + d) * f).store(o + d);
            }
        }
        for (int i = 0; i < kMaxTileRows; i += 16) {
            (Vec::load(state.l + i) * Vec::load(factors.v + i) + Vec::load(sums.v + i)).store(state.l + i);
            Vec::load(tops.v + i).store(state.m + i);
        }
        tiles_.values(probabilities_of(0) + g0 * kCell, v + g0, g1 - g0, cells_, state.o, a_.padded_head, next + g0);
    }

    // Scales and zero points of the 32 positions from `at` on, group g of a step; prefetches those of `after`.
    void take_grid(int g, int at, int after, CellRun& k, CellRun& v) {
        const int tokens = a_.kv.block_tokens;
        const float *grid = grid_at(at), *ahead = grid_at(after);
        for (int i = 0; i < kCell; i += 16) {
            Vec::load(grid + i).store(k_scales_ + g * kCell + i);
            Vec::load(grid + 2 * tokens + i).store(v_scales_ + g * kCell + i);
            for (int kind = 0; kind < 4; ++kind) __builtin_prefetch(ahead + kind * tokens + i);
        }
        k.zeros = grid + tokens;
        v.zeros = grid + 3 * tokens;
    }

    // What row r sees of the step: [lo, hi) relative to s0, empty if lo >= hi. kWhole: every row sees all of it.
    struct Sight {
        int lo, hi;
    };
    template <bool kWhole>
    DI_INLINE Sight sight(int r, int s0) const {
        if (kWhole) return {0, kSoftmaxStep};
        const int lo = begin_[r] - s0, hi = end_[r] - s0;
        return {lo > 0 ? lo : 0, hi < kSoftmaxStep ? hi : kSoftmaxStep};
    }

    // Scales, caps, biases and masks the scores; max(m, largest score of the step) for each row.
    template <bool kWhole>
    PerRow maxima(int s0, const SoftmaxState& state) {
        PerRow tops{};
        const Vec hidden = Vec::set(-__builtin_inff());
        for (int r = 0; r < rows_; ++r) {
            const Sight see = sight<kWhole>(r, s0);
            tops.v[r] = -__builtin_inff();
            if (see.lo >= see.hi) continue;
            float* s = s_ + r * kScoreStride;
            const int begin = see.lo / 16 * 16, end = round_up(see.hi, 16);
            if constexpr (Tiles::kCodes) {
                for (int i = begin; i < end; i += 16) (Vec::load(s + i) * Vec::load(k_scales_ + i)).store(s + i);
            }
            if (a_.softcap > 0) {
                for (int i = begin; i < end; i += 16)
                    soft_cap(Vec::load(s + i), Vec::set(a_.softcap * kLog2E)).store(s + i);
            }
            if (a_.alibi) add_slope(s, begin, end, s0, a_.alibi[query_head(a_, t_, r)] * kLog2E);
            if (see.lo > begin) select(Vec::first_n(see.lo - begin), hidden, Vec::load(s + begin)).store(s + begin);
            if (see.hi < end) {
                float* last = s + end - 16;
                select(Vec::first_n(see.hi - end + 16), Vec::load(last), hidden).store(last);
            }
            Vec top = hidden;
#pragma GCC unroll 4
            for (int i = begin; i < end; i += 16) top = max(top, Vec::load(s + i));
            tops.v[r] = top.reduce_max();
        }
        for (int i = 0; i < kMaxTileRows; i += 16) {  // without branches, which nothing predicts
            const Vec m = Vec::load(state.m + i), top = Vec::load(tops.v + i);
            select(less(m, top), top, m).store(tops.v + i);  // a NaN shows in its p
        }
        return tops;
    }

    static void add_slope(float* s, int begin, int end, int s0, float slope) {
        alignas(64) float position[16];
        for (int i = 0; i < 16; ++i) position[i] = static_cast<float>(s0 + begin + i);
        Vec at = Vec::load(position);
        for (int i = begin; i < end; i += 16, at = at + Vec::set(16.0f)) {
            (Vec::load(s + i) + Vec::set(slope) * at).store(s + i);
        }
    }

    Operand* probabilities_of(int r) const { return reinterpret_cast<Operand*>(s_ + r * kScoreStride); }

    // p = 2^(s - top) over the groups [g0, g1), 0 where row r sees nothing, each times the scale of V where it has
    // one; the sum of 2^(s - top), unrounded and unscaled. A row's p is never longer than its s: it follows behind.
    template <bool kWhole>
    DI_INLINE float probabilities(int r, int s0, int g0, int g1, float top) {
        const Sight see = sight<kWhole>(r, s0);
        const bool any = see.lo < see.hi;
        const int begin = any ? see.lo / 16 : 2 * g1, end = any ? (see.hi + 15) / 16 : 2 * g1;
        const float* s = s_ + r * kScoreStride;
        Operand* const p = probabilities_of(r);
        for (int j = 2 * g0; j < begin; ++j) Tiles::put(p + j * 16, Vec::zero());
        const Vec m = Vec::set(top == -__builtin_inff() ? 0.0f : top);  // every score -inf: every p 0
        Vec sum = Vec::zero();
        const auto weight = [&](int i) {
            const Vec e = exp2(Vec::load(s + i * 16) - m);
            sum = sum + e;
            if constexpr (Tiles::kCodes) return e * Vec::load(v_scales_ + 16 * i);
            return e;
        };
        int i = begin;
        for (; i + 2 <= end; i += 2) {
            const Vec one = weight(i), two = weight(i + 1);
            Tiles::put(p + i * 16, one, two);
        }
        if (i < end) Tiles::put(p + i * 16, weight(i));
        for (int j = end; j < 2 * g1; ++j) Tiles::put(p + j * 16, Vec::zero());
        return sum.reduce_add();
    }

    const Attention& a_;
    const AttentionTask& t_;
    const int rows_, cells_;
    Tiles tiles_;
    const uint8_t* pool_;
    size_t group_bytes_, half_bytes_, head_offset_, block_bytes_;
    Operand* q_;
    float *s_, *states_;
    int first_, last_, all_begin_, all_end_;
    int begin_[kMaxTileRows], end_[kMaxTileRows];
    alignas(64) float k_scales_[Tiles::kCodes ? kSoftmaxStep : 16];  // of a step
    alignas(64) float v_scales_[Tiles::kCodes ? kSoftmaxStep : 16];
};

inline void attention_merge(const Attention& a, const AttentionTask& t, const float* partials, int splits) {
    for (int r = 0; r < t.row1 - t.row0; ++r) {
        alignas(64) float o[kMaxHead];
        float m = -__builtin_inff(), l = 0.0f;
        for (int d = 0; d < a.padded_head; d += 16) Vec::zero().store(o + d);
        if (a.sinks && t.split0 > 0) {
            m = a.sinks[query_head(a, t, r)] * kLog2E;
            l = 1.0f;
        }
        for (int i = 0; i < splits; ++i) {
            const float* part = partials + static_cast<size_t>(i) * partial_floats(a.padded_head);
            const float* ml = part + kMaxTileRows * a.padded_head + r;
            merge_row(m, l, o, ml[0], ml[kMaxTileRows], part + r * a.padded_head, a.padded_head);
        }
        write_row(a, t, r, l, o);
    }
}

}  // namespace
}  // namespace di
