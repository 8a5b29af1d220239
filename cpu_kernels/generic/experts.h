// Mixtures of experts, but for their products: which experts a token chooses, and what becomes of their outputs.
#pragma once
#include "math.h"
#include "reduce.h"
#include "rows.h"

namespace di {
namespace {

// The k best of E logits, ids in ascending order. Of equal logits the lower id is better; NaN is the worst there is.
DI_INLINE void choose(const float* logits, int experts, int chosen, int32_t* ids) {
    float best[kMaxExperts];  // of ids[0 .. count), descending
    int count = 0;
    for (int e = 0; e < experts; ++e) {
        const float x = logits[e] == logits[e] ? logits[e] : -__builtin_inff();
        if (count == chosen && !(x > best[count - 1])) continue;
        int at = count < chosen ? count++ : count - 1;
        for (; at > 0 && x > best[at - 1]; --at) best[at] = best[at - 1], ids[at] = ids[at - 1];
        best[at] = x;
        ids[at] = e;
    }
    for (int i = 1; i < chosen; ++i) {
        const int32_t id = ids[i];
        int at = i;
        for (; at > 0 && ids[at - 1] > id; --at) ids[at] = ids[at - 1];
        ids[at] = id;
    }
}

// One token: p = softmax(logits) in 16 lanes; the weights of the chosen ones, in ascending order of their ids.
DI_INLINE void route_row(const Route& r, int m) {
    alignas(64) float x[kMaxExperts];
    int32_t ids[kMaxExperts];
    const float* logits = r.logits.row<const float>(m);
    for (int c = 0; c < r.logits.cols && c < kMaxExperts; c += kCell) {
        __builtin_memcpy(x + c, logits + c / kCell * r.logits.step(), kCell * sizeof(float));
    }
    choose(x, r.experts, r.chosen, ids);
    const Vec top = Vec::set(row_max(x, r.experts));
    Vec sum = Vec::zero();
    for (int e = 0; e < r.experts; e += 16) {
        const Vec p = exp(Vec::load(x + e) - top);
        sum = sum + select(Vec::first_n(r.experts - e), p, Vec::zero());
        p.store(x + e);
    }
    const float total = sum.reduce_add();
    float chosen = 0.0f;
    for (int j = 0; j < r.chosen; ++j) {
        const float p = x[ids[j]] / total;
        chosen = j == 0 ? p : chosen + p;
    }
    float* y = r.y.row<float>(m);
    const auto column = [&](int c) { return y + c / kCell * r.y.step() + c % kCell; };
    for (int c = 0; c < r.y.cols; c += kCell) __builtin_memset(column(c), 0, kCell * sizeof(float));
    for (int j = 0; j < r.chosen; ++j) {
        const float p = x[ids[j]] / total;
        __builtin_memcpy(column(j), ids + j, sizeof(float));
        *column(r.chosen + j) = (r.renormalize ? p / chosen : p) * r.scale;
    }
}

void route(const Route& r, int m0, int m1) {
    for (int m = m0; m < m1; ++m) route_row(r, m);
}

void add_weighted(const View& y, const View& x, const int32_t* rows, const float* weights, int n) {
    for (int i = 0; i < n; ++i) {
        float* to = y.row<float>(rows[i]);
        const float* from = x.row<const float>(i);
        const Vec weight = Vec::set(weights[i]);
        for (int c = 0; c < x.cols; c += kCell, to += y.step(), from += x.step()) {
            fma(weight, Vec::load(from), Vec::load(to)).store(to);
            fma(weight, Vec::load(from + 16), Vec::load(to + 16)).store(to + 16);
        }
    }
}

DI_INLINE Vec sigmoid(Vec x) { return Vec::set(1.0f) / (Vec::set(1.0f) + exp(-x)); }

void gate_rows(const View& y, const View& x, const View& gate, int m0, int m1) {
    by_type(y.dtype, [&](auto ty) {
        by_type(x.dtype, [&](auto tx) {
            for (int m = m0; m < m1; ++m) {
                const float* g = gate.row<const float>(m);
                const Vec factor = Vec::set(sigmoid(Vec::load(g)).lane(0));
                auto* to = y.row<TypeOf<decltype(ty)>>(m);
                const auto* from = x.row<const TypeOf<decltype(tx)>>(m);
                for (int c = 0; c < y.cols; c += kCell, to += y.step(), from += x.step()) {
                    for (int i = 0; i < kCell; i += 16) store16(to + i, load16(from + i) * factor);
                }
            }
        });
    });
}

}  // namespace
}  // namespace di
