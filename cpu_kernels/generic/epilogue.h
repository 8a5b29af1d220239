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

DI_INLINE void put(float* y, Vec v) { v.store(y); }
DI_INLINE void put(bf16* y, Vec v) { v.store_bf16(y); }

// What most products end in has code of its own, fit to stand between the instructions of a matrix unit.
enum class Finish {
    Any,
    Sums,           // in fp32, with a bias or a residual or without
    SiluMul,        // silu(gate) · up in fp32, without bias or residual
    SiluMulNarrow,  // the same in bf16
};

DI_INLINE Finish finish_of(const Gemm& g) {
    const bool wide = g.y.dtype == DType::F32;
    if (g.gated && g.act == Act::Silu && !g.bias && !g.residual) return wide ? Finish::SiluMul : Finish::SiluMulNarrow;
    return !g.gated && g.act == Act::None && wide ? Finish::Sums : Finish::Any;
}

// The epilogue of rows [m, m + n) of one band and of panel p, whose 32 sums are a[16] and b[16]: gate and up, or
// neighbours.
struct RowEpilogue {
    void* y;  // of row m; it and the residual have 32 elements a row
    const float* residual;
    const float* bias;
    Act act;
    bool gated, wide;

    RowEpilogue() = default;
    RowEpilogue(const Gemm& g, int m, int p) : residual(nullptr), act(g.act), gated(g.gated) {
        const int column = g.gated ? 16 * p : 32 * p;
        const auto at = [&](const View& view) { return column / kCell * view.step() + column % kCell; };
        wide = g.y.dtype == DType::F32;
        y = wide ? static_cast<void*>(g.y.row<float>(m) + at(g.y)) : g.y.row<bf16>(m) + at(g.y);
        bias = g.bias ? g.bias + 32 * p : nullptr;
        if (g.residual) {
            View view = g.residual_view;
            view.data = const_cast<float*>(g.residual);
            residual = view.row<const float>(m) + at(view);
        }
    }

    // Row m + r.
    template <Finish kHow>
    DI_INLINE void finish(int r, Vec a, Vec b) const {
        const size_t at = static_cast<size_t>(r) * kCell;
        if constexpr (kHow == Finish::SiluMulNarrow) {
            put(static_cast<bf16*>(y) + at, silu(a) * b);
        } else if constexpr (kHow == Finish::SiluMul) {
            put(static_cast<float*>(y) + at, silu(a) * b);
        } else if constexpr (kHow == Finish::Sums) {
            finish_sums(static_cast<float*>(y) + at, at, a, b);
        } else {
            finish_any(*this, at, a, b);
        }
    }

  private:
    template <class Out>
    DI_INLINE void finish_sums(Out* to, size_t at, Vec a, Vec b) const {
        if (bias) a = a + Vec::load(bias), b = b + Vec::load(bias + 16);
        if (residual) a = a + Vec::load(residual + at), b = b + Vec::load(residual + at + 16);
        put(to, a);
        put(to + 16, b);
    }

    // By value: what a call has the address of, callers cannot keep in registers.
    static DI_NOINLINE void finish_any(RowEpilogue e, size_t at, Vec a, Vec b) {
        e.wide ? e.finish_to(static_cast<float*>(e.y) + at, at, a, b)
               : e.finish_to(static_cast<bf16*>(e.y) + at, at, a, b);
    }

    template <class Out>
    DI_INLINE void finish_to(Out* to, size_t at, Vec a, Vec b) const {
        if (!gated && act == Act::None) return finish_sums(to, at, a, b);
        if (bias) a = a + Vec::load(bias), b = b + Vec::load(bias + 16);
        a = activate(act, a);
        a = gated ? a * b : a;
        if (residual) a = a + Vec::load(residual + at);
        put(to, a);
        if (gated) return;
        b = activate(act, b);
        if (residual) b = b + Vec::load(residual + at + 16);
        put(to + 16, b);
    }
};

// f(tag) with Tag::how for the epilogue's own code.
template <Finish kHow>
struct How {
    static constexpr Finish how = kHow;
};
template <class F>
DI_INLINE void with_finish(Finish finish, F f) {
    switch (finish) {
        case Finish::Sums:
            return f(How<Finish::Sums>{});
        case Finish::SiluMul:
            return f(How<Finish::SiluMul>{});
        case Finish::SiluMulNarrow:
            return f(How<Finish::SiluMulNarrow>{});
        default:
            return f(How<Finish::Any>{});
    }
}

// sums[rows][32] are the finished sums of rows [m, m + rows), all of one band, and panel p.
DI_NOINLINE void finish(const Gemm& g, int m, int rows, int p, const float* sums) {
    const RowEpilogue row(g, m, p);
    with_finish(finish_of(g), [&](auto tag) {
        for (int r = 0; r < rows; ++r, sums += kCell)
            row.finish<decltype(tag)::how>(r, Vec::load(sums), Vec::load(sums + 16));
    });
}

// The same, a few rows at a time: to be done between the instructions of a matrix unit, which leave the vector units
// idle.
template <Finish kHow>
class PendingRows {
  public:
    // Nothing may be pending. `kept` stays as it is until all rows are finished.
    void begin(const Gemm& g, int m, int count, int p, const float* kept) {
        row_ = 0;
        rows_ = count;
        sums_ = kept;
        epilogue_ = RowEpilogue(g, m, p);
    }

    int left() const { return rows_ - row_; }

    // The next kCount rows, of at least as many.
    template <int kCount>
    DI_INLINE void advance() {
        for (int i = 0; i < kCount; ++i) finish_row(row_ + i);
        row_ += kCount;
    }

    DI_INLINE void finish_all() {
        if (row_ < rows_) finish_rest();
    }

  private:
    DI_INLINE void finish_row(int r) const {
        const float* sums = sums_ + static_cast<size_t>(r) * kCell;
        epilogue_.template finish<kHow>(r, Vec::load(sums), Vec::load(sums + 16));
    }
    DI_NOINLINE void finish_rest() {
        for (; row_ < rows_; ++row_) finish_row(row_);
    }

    int row_ = 0, rows_ = 0;
    const float* sums_ = nullptr;
    RowEpilogue epilogue_;
};

}  // namespace
}  // namespace di
