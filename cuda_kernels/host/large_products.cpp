#include "large_products.h"

#include <algorithm>
#include <array>
#include <cstdlib>

#include "device.h"
#include "notice.h"
#include "pack.h"
#include "settings.h"

namespace di {

namespace {

constexpr int kRows = 64;  // products of more rows are large
constexpr size_t kWorkspace = size_t{32} << 20;
constexpr int64_t kScratch = int64_t{64} << 20;  // about what second-level caches hold
constexpr int kFewestRows = 64;                  // at a time
constexpr size_t kMostPlans = 1024;

int blas_type(int dtype) { return dtype == F32 ? kBlasF32 : dtype == F16 ? kBlasF16 : kBlasBf16; }

uint32_t alignment(const void* p) {
    const auto bits = reinterpret_cast<uintptr_t>(p) | 256;
    return static_cast<uint32_t>(bits & (~bits + 1));
}

const void* plus_of(const BlasProduct& p) { return p.plus ? p.plus : p.out; }
int64_t plus_stride_of(const BlasProduct& p) { return p.plus ? p.plus_stride : p.out_stride; }

// What the library is told of the addresses of w, x, what is added, and out.
std::array<uint32_t, 4> alignments(const BlasProduct& p) {
    return {alignment(p.w), alignment(p.x), alignment(plus_of(p)), alignment(p.out)};
}

int bound() {
    const std::string text = setting("cublaslt_rows");
    return text.empty() ? kRows : std::max(1, std::atoi(text.c_str()));
}

}  // namespace

LargeProducts::LargeProducts(OpenDevice& device)
    : device_(device), workspace_(device.driver), scratch_(device.driver), bound_(bound()) {}

LargeProducts::~LargeProducts() { release(); }

void LargeProducts::prepare(int64_t scratch_bytes) {
    CublasLt& library = device_.cublaslt;
    if (!library.open(device_.chip)) return;
    char reason[256] = "it describes no product";
    const Why why{reason, sizeof reason};
    const int32_t transposed = kBlasTransposed;
    ready_ = !library.cublasLtMatmulDescCreate(&description_, kBlasComputeF32, kBlasF32) &&
             !library.cublasLtMatmulDescSetAttribute(description_, kBlasTransA, &transposed, sizeof transposed) &&
             !workspace_.allocate(kWorkspace, why, "its workspace") &&
             !scratch_.allocate(static_cast<size_t>(scratch_bytes), why, "large products");
    if (ready_) return;
    give_up(reason);
    release();
}

// Bytes between two kernels for `rows` rows.
int64_t LargeProducts::scratch_bytes(int64_t row_bytes, int64_t rows) {
    return std::min(row_bytes * rows, std::max(kScratch, row_bytes * kFewestRows));
}

bool LargeProducts::takes(const LinearArgs& a) const {
    const bool one_type = a.w_dtype != F16 && a.x.dtype == a.w_dtype, split = a.w_dtype == F16 && a.x.dtype == F32;
    return ready_ && wants(a.rows.most) && !a.experts.chosen && (one_type || split);
}

int LargeProducts::rows_at_once(const LargeShape& shape, int rows) const {
    if (shape.row_bytes() == 0) return rows;
    const auto fit = static_cast<int>(static_cast<int64_t>(scratch_.bytes()) / shape.row_bytes());
    return fit >= rows ? rows : std::max(fit / kFewestRows * kFewestRows, 1);
}

LinearHalvesArgs LargeProducts::halves(const LinearArgs& a, const LargeShape& shape, const LargePiece& piece) const {
    const DevicePointer high = scratch_.at(), low = high + static_cast<DevicePointer>(shape.half_bytes()) * piece.count;
    return {a.x, reinterpret_cast<void*>(high), reinterpret_cast<void*>(low), a.K, piece.first, piece.count, a.rows};
}

LinearFinishArgs LargeProducts::finish(const LinearArgs& a, const LargeShape& shape, const LargePiece& piece) const {
    const DevicePointer totals = scratch_.at() + 2 * static_cast<DevicePointer>(shape.half_bytes()) * piece.count;
    return {a.e, reinterpret_cast<const float*>(totals), a.N, piece.first, piece.count, a.rows};
}

std::vector<BlasProduct> LargeProducts::products(const LinearArgs& a, const LargeShape& shape,
                                                 const LargePiece& piece) const {
    const auto row_of = [&piece](const View& v) -> void* {
        return static_cast<unsigned char*>(v.data) + piece.first * v.stride * static_cast<int64_t>(size_of(v.dtype));
    };
    BlasProduct p{};
    p.x = row_of(a.x);
    p.x_stride = a.x.stride;
    p.w = a.w;
    p.w_stride = a.w_stride;
    p.out = shape.direct ? row_of(a.e.out) : const_cast<float*>(finish(a, shape, piece).totals);
    p.out_stride = shape.direct ? a.e.out.stride : a.N;
    p.type = a.w_dtype;
    p.out_type = shape.direct ? a.e.out.dtype : F32;
    p.M = piece.count;
    p.N = a.N;
    p.K = a.K;
    if (shape.direct && a.e.residual.data) {
        p.plus = row_of(a.e.residual);
        p.plus_stride = a.e.residual.stride;
    }
    if (!shape.split) return {p};
    const LinearHalvesArgs parts = halves(a, shape, piece);  // the small one first
    p.x = parts.low;
    p.x_stride = a.K;
    BlasProduct second = p;
    second.x = parts.high;
    second.plus = second.out;
    second.plus_stride = second.out_stride;
    return {p, second};
}

bool LargeProducts::run(const BlasProduct& p, void* stream) {
    if (!ready_) return false;
    const Plan& found = plan(p);
    if (!found.usable) return false;
    const float one = 1, add = p.plus ? 1 : 0;
    const int status = device_.cublaslt.cublasLtMatmul(
        device_.cublaslt.handle(), description_, &one, p.w, found.layouts[0], p.x, found.layouts[1], &add, plus_of(p),
        found.layouts[2], p.out, found.layouts[3], &found.best.algorithm, reinterpret_cast<void*>(workspace_.at()),
        found.best.workspace, stream);
    if (status == 0) return true;
    give_up(("a product fails (status " + std::to_string(status) + ")").c_str());
    return false;
}

const LargeProducts::Plan& LargeProducts::plan(const BlasProduct& p) {
    Shape shape = {p.M, p.N, p.K, p.type, p.out_type, p.x_stride, p.w_stride, plus_stride_of(p), p.out_stride};
    for (const uint32_t each : alignments(p)) shape.push_back(each);
    const auto known = plans_.find(shape);
    if (known != plans_.end()) return known->second;
    if (plans_.size() >= kMostPlans) forget_plans();
    Plan& fresh = plans_[shape];
    fresh.usable = make(p, &fresh);
    return fresh;
}

// Row-major y = x · wᵀ is column-major yᵀ = w · xᵀ, and the library sees w as transposed.
bool LargeProducts::make(const BlasProduct& p, Plan* plan) const {
    const CublasLt& l = device_.cublaslt;
    const int type = blas_type(p.type), out_type = blas_type(p.out_type);
    const auto M = static_cast<uint64_t>(p.M), N = static_cast<uint64_t>(p.N), K = static_cast<uint64_t>(p.K);
    if (l.cublasLtMatrixLayoutCreate(&plan->layouts[0], type, K, N, p.w_stride) ||
        l.cublasLtMatrixLayoutCreate(&plan->layouts[1], type, K, M, p.x_stride) ||
        l.cublasLtMatrixLayoutCreate(&plan->layouts[2], out_type, N, M, plus_stride_of(p)) ||
        l.cublasLtMatrixLayoutCreate(&plan->layouts[3], out_type, N, M, p.out_stride))
        return false;
    void* preference = nullptr;
    if (l.cublasLtMatmulPreferenceCreate(&preference)) return false;
    const uint64_t workspace = workspace_.bytes();
    bool good = !l.cublasLtMatmulPreferenceSetAttribute(preference, kBlasMaxWorkspace, &workspace, sizeof workspace);
    int attribute = kBlasMinAlignment;
    for (const uint32_t each : alignments(p))
        good = good && !l.cublasLtMatmulPreferenceSetAttribute(preference, attribute++, &each, sizeof each);
    int count = 0;
    good = good &&
           !l.cublasLtMatmulAlgoGetHeuristic(l.handle(), description_, plan->layouts[0], plan->layouts[1],
                                             plan->layouts[2], plan->layouts[3], preference, 1, &plan->best, &count);
    l.cublasLtMatmulPreferenceDestroy(preference);
    return good && count == 1 && plan->best.status == 0 && plan->best.workspace <= workspace_.bytes();
}

void LargeProducts::forget_plans() {
    for (auto& [shape, plan] : plans_)
        for (void* layout : plan.layouts)
            if (layout) device_.cublaslt.cublasLtMatrixLayoutDestroy(layout);
    plans_.clear();
}

void LargeProducts::give_up(const char* reason) {
    ready_ = false;
    notice("cuBLASLt is not used: %s", reason);
}

void LargeProducts::release() {
    forget_plans();
    if (description_) device_.cublaslt.cublasLtMatmulDescDestroy(description_);
    description_ = nullptr;
    workspace_.release();
    scratch_.release();
    ready_ = false;
}

}  // namespace di
