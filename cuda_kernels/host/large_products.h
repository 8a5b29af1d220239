// Products of many rows by cuBLASLt: its workspace, the memory that products pass through, and an algorithm a shape.
#pragma once
#include <map>
#include <vector>

#include "cublaslt.h"
#include "memory.h"

namespace di {

struct OpenDevice;

// out[M,N] = x[M,K] · w[N,K]ᵀ (+ plus[M,N]), all row-major; x and w of one type.
struct BlasProduct {
    const void *x, *w, *plus;
    void* out;
    int64_t x_stride, w_stride, plus_stride, out_stride;
    int32_t type, out_type;  // F32, F16 or BF16; plus has out's
    int32_t M, N, K;
};

// How a product comes about. Activations in fp32 meet fp16 weights as two matrices of fp16; what has an epilogue, or
// another type than fp32 and a residual, is summed in fp32 beside and finished by a kernel.
struct LargeShape {
    bool split, direct;
    int32_t N, K;

    LargeShape(int32_t w_dtype, int32_t n, int32_t k, bool plain, bool has_residual, int32_t out_dtype)
        : split(w_dtype == F16),
          direct(plain && (out_dtype == F32 || (out_dtype == w_dtype && !has_residual))),
          N(n),
          K(k) {}
    explicit LargeShape(const LinearArgs& a)
        : LargeShape(a.w_dtype, a.N, a.K, a.e.act == 0 && !a.e.bias, a.e.residual.data, a.e.out.dtype) {}
    int64_t half_bytes() const { return split ? int64_t{2} * K : 0; }  // a row, and each half
    int64_t row_bytes() const { return 2 * half_bytes() + (direct ? 0 : int64_t{4} * N); }
};

struct LargePiece {
    int32_t first, count;  // rows
};

class LargeProducts {
  public:
    explicit LargeProducts(OpenDevice& device);
    LargeProducts(const LargeProducts&) = delete;
    LargeProducts& operator=(const LargeProducts&) = delete;
    ~LargeProducts();

    // Whether a product of up to `rows` rows could be one of these.
    bool wants(int64_t rows) const { return rows > bound_; }

    // Takes the memory that is needed. Without the library, or without memory, there are no large products.
    void prepare(int64_t scratch_bytes);
    static int64_t scratch_bytes(int64_t row_bytes, int64_t rows);

    bool takes(const LinearArgs& args) const;

    // Rows of a product that are computed at a time.
    int rows_at_once(const LargeShape& shape, int rows) const;

    // What a piece consists of: its activations' halves where it is split, one product or that of each half, and its
    // end where it is not direct.
    LinearHalvesArgs halves(const LinearArgs& args, const LargeShape& shape, const LargePiece& piece) const;
    std::vector<BlasProduct> products(const LinearArgs& args, const LargeShape& shape, const LargePiece& piece) const;
    LinearFinishArgs finish(const LinearArgs& args, const LargeShape& shape, const LargePiece& piece) const;

    // Whether the library has an algorithm for a product.
    bool knows(const BlasProduct& product) { return plan(product).usable; }

    // Puts a product on the stream. False, with nothing done, where the library refuses.
    bool run(const BlasProduct& product, void* stream);

    void release();  // in the GPU's context

  private:
    struct Plan {
        void* layouts[4] = {};  // of w, x, what is added, and out: column-major, so that rows are columns
        BlasHeuristic best{};
        bool usable = false;
    };
    using Shape = std::vector<int64_t>;

    const Plan& plan(const BlasProduct& product);
    bool make(const BlasProduct& product, Plan* plan) const;
    void forget_plans();
    void give_up(const char* reason);

    OpenDevice& device_;
    DeviceMemory workspace_, scratch_;
    std::map<Shape, Plan> plans_;
    void* description_ = nullptr;
    int bound_;
    bool ready_ = false;
};

}  // namespace di
