// What happens to the sums of a product: bias, activation, gate, residual, rounding.
#pragma once
#include "../kernels.h"
#include "inline.h"
#include "math.h"

namespace di {
namespace {

DI_INLINE Vec activate(Act act, Vec x) {
    switch (act) {
        case Act::Silu:
            return silu(x);
        case Act::GeluTanh:
            return gelu_tanh(x);
        case Act::GeluErf:
            return gelu_erf(x);
        default:
            return x;
    }
}

template <bool kValue>
struct Flag {
    static constexpr bool value = kValue;
};
template <class F>
DI_INLINE void with_flag(bool flag, F f) {
    flag ? f(Flag<true>{}) : f(Flag<false>{});
}

DI_INLINE void put(float* y, Vec v) { v.store(y); }
DI_INLINE void put(bf16* y, Vec v) { v.store_bf16(y); }

// Rows of one band in 16 or 32 adjacent columns: y and the residual run with 32 elements a row.
template <class Out>
struct OutputRows {
    Out* y;
    const float* residual;
    const float* bias;  // of the panel

    OutputRows(Out* to, const float* added, const float* biases) : y(to), residual(added), bias(biases) {}

    OutputRows(const Gemm& g, int m, int p) {
        const int column = g.gated ? 16 * p : 32 * p;
        y = g.y.row<Out>(m) + column / kCell * g.y.step() + column % kCell;
        bias = g.bias ? g.bias + 32 * p : nullptr;
        residual = nullptr;
        if (g.residual) {
            View view = g.residual_view;
            view.data = const_cast<float*>(g.residual);
            residual = view.row<const float>(m) + column / kCell * view.step() + column % kCell;
        }
    }
};

template <class Out>
DI_INLINE void finish_linear(const OutputRows<Out>& out, int r0, int r1, const float* sums) {
    with_flag(out.bias, [&](auto biased) {
        with_flag(out.residual, [&](auto added) {
            const Vec bias[2] = {biased.value ? Vec::load(out.bias) : Vec::zero(),
                                 biased.value ? Vec::load(out.bias + 16) : Vec::zero()};
            for (int r = r0; r < r1; ++r) {
                for (int h = 0; h < 2; ++h) {
                    const size_t at = static_cast<size_t>(r) * kCell + 16 * h;
                    Vec v = Vec::load(sums + at);
                    if (biased.value) v = v + bias[h];
                    if (added.value) v = v + Vec::load(out.residual + at);
                    put(out.y + at, v);
                }
            }
        });
    });
}

template <class Out>
DI_INLINE void finish_gated(const OutputRows<Out>& out, Act act, int r0, int r1, const float* sums) {
    for (int r = r0; r < r1; ++r) {
        const size_t at = static_cast<size_t>(r) * kCell;
        Vec gate = Vec::load(sums + at), up = Vec::load(sums + at + 16);
        if (out.bias) {
            gate = gate + Vec::load(out.bias);
            up = up + Vec::load(out.bias + 16);
        }
        Vec v = activate(act, gate) * up;
        if (out.residual) v = v + Vec::load(out.residual + at);
        put(out.y + at, v);
    }
}

template <class Out>
DI_INLINE void finish_activated(const OutputRows<Out>& out, Act act, int r0, int r1, const float* sums) {
    for (int r = 2 * r0; r < 2 * r1; ++r) {
        const size_t at = static_cast<size_t>(r) * 16;
        Vec v = Vec::load(sums + at);
        if (out.bias) v = v + Vec::load(out.bias + at % kCell);
        v = activate(act, v);
        if (out.residual) v = v + Vec::load(out.residual + at);
        put(out.y + at, v);
    }
}

// sums[rows][32] are the finished sums of rows [m, m + rows), all of one band, and panel p.
template <class Out>
DI_NOINLINE void finish_as(const Gemm& g, int m, int rows, int p, const float* sums) {
    const OutputRows<Out> out(g, m, p);
    if (g.gated) return finish_gated(out, g.act, 0, rows, sums);
    if (g.act != Act::None) return finish_activated(out, g.act, 0, rows, sums);
    finish_linear(out, 0, rows, sums);
}

DI_INLINE void finish(const Gemm& g, int m, int rows, int p, const float* sums) {
    g.y.dtype == DType::F32 ? finish_as<float>(g, m, rows, p, sums) : finish_as<bf16>(g, m, rows, p, sums);
}

// The epilogue of most models' largest product is done in place; all others take a call.
enum class Finish {
    Any,
    SiluMul,  // silu(gate) · up in bf16, without bias or residual
};

DI_INLINE Finish finish_of(const Gemm& g) {
    const bool bare = !g.bias && !g.residual && g.y.dtype == DType::BF16;
    return g.gated && g.act == Act::Silu && bare ? Finish::SiluMul : Finish::Any;
}

// The same, a few rows at a time: to be done between the instructions of a matrix unit, which leave the vector units
// idle.
template <Finish kHow>
struct PendingRows {
    int row = 0, rows = 0;

    // Nothing may be pending. `kept` stays as it is until all rows are finished.
    void begin(const Gemm& g, int m, int count, int p, const float* kept) {
        row = 0;
        rows = count;
        sums = kept;
        gated = g.gated;
        act = g.act;
        wide = g.y.dtype == DType::F32;
        const OutputRows<float> to_float(g, m, p);
        const OutputRows<bf16> to_bf16(g, m, p);
        y = wide ? static_cast<void*>(to_float.y) : to_bf16.y;
        residual = to_float.residual;
        bias = to_float.bias;
    }

    int left() const { return rows - row; }

    // The next kCount rows, of at least as many.
    template <int kCount>
    DI_INLINE void advance() {
        if constexpr (kHow == Finish::SiluMul) {
            const float* from = sums + static_cast<size_t>(row) * kCell;
            bf16* to = static_cast<bf16*>(y) + static_cast<size_t>(row) * kCell;
            for (int r = 0; r < kCount; ++r) finish_silu_mul(from + r * kCell, to + r * kCell);
            row += kCount;
        } else {
            finish_some(row + kCount);
        }
    }

    DI_INLINE void finish_all() {
        if (row < rows) finish_some(rows);
    }

  private:
    static DI_INLINE void finish_silu_mul(const float* from, bf16* to) {
        put(to, silu(Vec::load(from)) * Vec::load(from + 16));
    }

    DI_NOINLINE void finish_some(int end) {
        if constexpr (kHow == Finish::SiluMul) {
            for (; row < end; ++row) {
                const size_t at = static_cast<size_t>(row) * kCell;
                finish_silu_mul(sums + at, static_cast<bf16*>(y) + at);
            }
        } else {
            wide ? finish_to<float>(end) : finish_to<bf16>(end);
            row = end;
        }
    }

    template <class Out>
    DI_INLINE void finish_to(int end) {
        const OutputRows<Out> out(static_cast<Out*>(y), residual, bias);
        if (gated) return finish_gated(out, act, row, end, sums);
        if (act != Act::None) return finish_activated(out, act, row, end, sums);
        finish_linear(out, row, end, sums);
    }

    const float* sums = nullptr;
    void* y = nullptr;
    const float *residual = nullptr, *bias = nullptr;
    Act act = Act::None;
    bool gated = false, wide = false;
};

}  // namespace
}  // namespace di
