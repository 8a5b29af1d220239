// A stand-in for libcublasLt, beside the one for the driver: the same entry points, computed on the CPU in double
// precision. What the library would take amiss ends the process with a sentence: unknown or ill-sized attributes, types
// that do not go together, leading dimensions, addresses less aligned than was said, memory that is not the GPU's, an
// algorithm that was found for another product.
//
// Environment: DASHINFER_EMU_CUBLASLT (120901), the version that it says it is.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "stand_in.h"

namespace {

using stand_in::enter;

enum Status : int { kSuccess = 0, kNotInitialized = 1, kAllocFailed = 3, kExecutionFailed = 13, kNotSupported = 15 };
enum Type : int { kF32 = 0, kF16 = 2, kBf16 = 14 };

constexpr size_t kNeeded = size_t{1} << 20;  // of workspace
constexpr uint64_t kMagic = 0x6c74656d75ull;

[[noreturn]] void die(const char* what) {
    std::fprintf(stderr, "stand-in cuBLASLt: %s\n", what);
    std::abort();
}

void require(bool good, const char* what) {
    if (!good) die(what);
}

struct Handle {
    uint64_t magic = kMagic;
};
struct Description {
    int compute, scale;
    int transposed[2] = {0, 0};
};
struct Layout {
    int type;
    uint64_t rows, cols, ld;

    bool operator==(const Layout& o) const { return type == o.type && rows == o.rows && cols == o.cols && ld == o.ld; }
};
struct Preference {
    uint64_t workspace = 0;
    uint32_t aligned[4] = {256, 256, 256, 256};
};
struct Algorithm {
    uint64_t data[8];
};
struct Heuristic {
    Algorithm algorithm;
    size_t workspace;
    int status;
    float waves;
    int reserved[4];
};

size_t size_of(int type) { return type == kF32 ? 4 : 2; }

uint64_t hash_of(const Description& d, const Layout* const (&layouts)[4]) {
    uint64_t hash = 14695981039346656037ull;
    const auto add = [&hash](uint64_t x) { hash = (hash ^ x) * 1099511628211ull; };
    add(static_cast<uint64_t>(d.transposed[0] * 2 + d.transposed[1]));
    for (const Layout* l : layouts) {
        add(static_cast<uint64_t>(l->type));
        add(l->rows);
        add(l->cols);
        add(l->ld);
    }
    return hash;
}

// d[M,N] = op(a) · op(b) in column-major matrices.
struct Sizes {
    uint64_t M, N, K;
};
Sizes sizes_of(const Description& d, const Layout& a, const Layout& b, const Layout& c, const Layout& out) {
    const Sizes s{d.transposed[0] ? a.cols : a.rows, d.transposed[1] ? b.rows : b.cols,
                  d.transposed[0] ? a.rows : a.cols};
    require((d.transposed[1] ? b.cols : b.rows) == s.K, "A and B have different K");
    require(c.rows == s.M && c.cols == s.N && out.rows == s.M && out.cols == s.N, "C or D is no matrix of M x N");
    require(c.type == out.type, "C and D have different types");
    return s;
}

float load(const void* data, uint64_t at, int type) {
    if (type == kF32) return static_cast<const float*>(data)[at];
    const uint16_t bits = static_cast<const uint16_t*>(data)[at];
    if (type == kF16) {
        _Float16 x;
        std::memcpy(&x, &bits, 2);
        return static_cast<float>(x);
    }
    const uint32_t wide = uint32_t{bits} << 16;
    float x;
    std::memcpy(&x, &wide, 4);
    return x;
}

void store(void* data, uint64_t at, int type, float x) {
    if (type == kF32) {
        static_cast<float*>(data)[at] = x;
    } else if (type == kF16) {
        const auto half = static_cast<_Float16>(x);
        std::memcpy(static_cast<uint16_t*>(data) + at, &half, 2);
    } else {
        uint32_t bits;
        std::memcpy(&bits, &x, 4);
        static_cast<uint16_t*>(data)[at] =
            x != x ? uint16_t{0x7FFF} : static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
    }
}

void check_matrix(const void* data, const Layout& layout, uint64_t aligned, const char* name) {
    const auto at = reinterpret_cast<uintptr_t>(data);
    if (at % aligned) die((std::string(name) + " is less aligned than was said").c_str());
    const uint64_t elements = (layout.cols - 1) * layout.ld + layout.rows;
    if (!stand_in::is_device(at, elements * size_of(layout.type)))
        die((std::string(name) + " is no device memory, or ends before its last column").c_str());
}

// K numbers of each of `count` rows or columns, one after the other; `along`: they are so already.
std::vector<float> vectors_of(const void* data, const Layout& layout, uint64_t count, uint64_t K, bool along) {
    std::vector<float> all(count * K);
    for (uint64_t i = 0; i < count; ++i)
        for (uint64_t k = 0; k < K; ++k)
            all[i * K + k] = load(data, along ? i * layout.ld + k : k * layout.ld + i, layout.type);
    return all;
}

template <class T>
const T& as(const void* p, const char* what) {
    require(p, what);
    return *static_cast<const T*>(p);
}

}  // namespace

EXPORT size_t cublasLtGetVersion() {
    return static_cast<size_t>(stand_in::environment("DASHINFER_EMU_CUBLASLT", 120901));
}
EXPORT int cublasLtCreate(void** handle) {
    if (enter("cublasLtCreate")) return kNotInitialized;
    return *handle = new Handle, kSuccess;
}
EXPORT int cublasLtDestroy(void* handle) {
    enter("cublasLtDestroy");
    return delete static_cast<Handle*>(handle), kSuccess;
}

EXPORT int cublasLtMatmulDescCreate(void** out, int compute, int scale) {
    if (enter("cublasLtMatmulDescCreate")) return kAllocFailed;
    require(compute == 68 && scale == kF32, "products are summed and scaled in fp32 here");
    return *out = new Description{compute, scale}, kSuccess;
}
EXPORT int cublasLtMatmulDescDestroy(void* p) {
    enter("cublasLtMatmulDescDestroy");
    return delete static_cast<Description*>(p), kSuccess;
}
EXPORT int cublasLtMatmulDescSetAttribute(void* p, int attribute, const void* value, size_t size) {
    require(attribute == 3 || attribute == 4, "only TRANSA and TRANSB are known here");
    require(size == sizeof(int32_t), "TRANSA and TRANSB have four bytes");
    const int32_t operation = as<int32_t>(value, "no value");
    require(operation == 0 || operation == 1, "a matrix is transposed or not");
    static_cast<Description*>(p)->transposed[attribute - 3] = operation;
    return kSuccess;
}

EXPORT int cublasLtMatrixLayoutCreate(void** out, int type, uint64_t rows, uint64_t cols, int64_t ld) {
    if (enter("cublasLtMatrixLayoutCreate")) return kAllocFailed;
    require(type == kF32 || type == kF16 || type == kBf16, "an unknown type");
    require(rows > 0 && cols > 0 && ld >= static_cast<int64_t>(rows), "a leading dimension below the rows");
    return *out = new Layout{type, rows, cols, static_cast<uint64_t>(ld)}, kSuccess;
}
EXPORT int cublasLtMatrixLayoutDestroy(void* p) {
    enter("cublasLtMatrixLayoutDestroy");
    return delete static_cast<Layout*>(p), kSuccess;
}

EXPORT int cublasLtMatmulPreferenceCreate(void** out) { return *out = new Preference, kSuccess; }
EXPORT int cublasLtMatmulPreferenceDestroy(void* p) { return delete static_cast<Preference*>(p), kSuccess; }
EXPORT int cublasLtMatmulPreferenceSetAttribute(void* p, int attribute, const void* value, size_t size) {
    auto& preference = *static_cast<Preference*>(p);
    if (attribute == 1) {
        require(size == sizeof(uint64_t), "the workspace's size has eight bytes");
        preference.workspace = as<uint64_t>(value, "no value");
        return kSuccess;
    }
    require(attribute >= 5 && attribute <= 8, "only the workspace and alignments are known here");
    require(size == sizeof(uint32_t), "alignments have four bytes");
    const auto aligned = as<uint32_t>(value, "no value");
    require(aligned > 0 && (aligned & (aligned - 1)) == 0 && aligned <= 256, "an alignment is a power of two");
    preference.aligned[attribute - 5] = aligned;
    return kSuccess;
}

EXPORT int cublasLtMatmulAlgoGetHeuristic(void* handle, void* description, void* a, void* b, void* c, void* d,
                                          void* preference, int wanted, Heuristic* results, int* count) {
    *count = 0;
    if (enter("cublasLtMatmulAlgoGetHeuristic")) return kNotSupported;
    require(as<Handle>(handle, "no handle").magic == kMagic, "no handle");
    require(wanted >= 1, "no algorithm is asked for");
    const auto& desc = as<Description>(description, "no description");
    const auto &A = as<Layout>(a, "no A"), &B = as<Layout>(b, "no B"), &C = as<Layout>(c, "no C");
    const auto& D = as<Layout>(d, "no D");
    const auto& prefers = as<Preference>(preference, "no preference");
    sizes_of(desc, A, B, C, D);
    require(A.type == B.type && (D.type == A.type || D.type == kF32), "types that do not go together");
    if (A.type == kBf16 && stand_in::arch() < 80) return kNotSupported;
    for (const Layout* l : {&A, &B, &C, &D})
        if (prefers.aligned[l == &A ? 0 : l == &B ? 1 : l == &C ? 2 : 3] < size_of(l->type)) return kNotSupported;
    if (prefers.workspace < kNeeded) return kNotSupported;
    Heuristic& best = *results;
    std::memset(&best, 0, sizeof best);
    const Layout* const layouts[4] = {&A, &B, &C, &D};
    best.algorithm.data[0] = kMagic;
    best.algorithm.data[1] = hash_of(desc, layouts);
    for (size_t i = 0; i < 4; ++i) best.algorithm.data[2 + i] = prefers.aligned[i];
    best.workspace = kNeeded;
    best.waves = 1;
    return *count = 1, kSuccess;
}

EXPORT int cublasLtMatmul(void* handle, void* description, const void* alpha, const void* a, void* a_layout,
                          const void* b, void* b_layout, const void* beta, const void* c, void* c_layout, void* d,
                          void* d_layout, const Algorithm* algorithm, void* workspace, size_t workspace_bytes,
                          void* stream) {
    if (enter("cublasLtMatmul")) return kExecutionFailed;
    require(as<Handle>(handle, "no handle").magic == kMagic, "no handle");
    const auto desc = as<Description>(description, "no description");
    const auto A = as<Layout>(a_layout, "no A"), B = as<Layout>(b_layout, "no B"), C = as<Layout>(c_layout, "no C");
    const auto D = as<Layout>(d_layout, "no D");
    const Sizes s = sizes_of(desc, A, B, C, D);
    const Layout* const layouts[4] = {&A, &B, &C, &D};
    const auto& found = as<Algorithm>(algorithm, "no algorithm").data;
    require(found[0] == kMagic && found[1] == hash_of(desc, layouts), "the algorithm is for another product");
    check_matrix(a, A, found[2], "A");
    check_matrix(b, B, found[3], "B");
    check_matrix(c, C, found[4], "C");
    check_matrix(d, D, found[5], "D");
    require(c != d || C == D, "C is D, but they are laid out differently");
    require(workspace_bytes >= kNeeded, "the workspace is smaller than the algorithm needs");
    const auto at = reinterpret_cast<uintptr_t>(workspace);
    require(at % 256 == 0 && stand_in::is_device(at, workspace_bytes), "the workspace is no device memory");
    const float scale = as<float>(alpha, "no alpha"), add = as<float>(beta, "no beta");
    const auto work = [=] {
        std::memset(workspace, 0xFF, kNeeded);
        const std::vector<float> rows = vectors_of(a, A, s.M, s.K, desc.transposed[0] != 0);
        const std::vector<float> columns = vectors_of(b, B, s.N, s.K, desc.transposed[1] == 0);
        for (uint64_t n = 0; n < s.N; ++n)
            for (uint64_t m = 0; m < s.M; ++m) {
                double sum = 0;
                const float *x = &rows[m * s.K], *y = &columns[n * s.K];
                for (uint64_t k = 0; k < s.K; ++k) sum += static_cast<double>(x[k]) * static_cast<double>(y[k]);
                const double more = add == 0 ? 0.0 : static_cast<double>(add * load(c, n * C.ld + m, C.type));
                store(d, n * D.ld + m, D.type, static_cast<float>(static_cast<double>(scale) * sum + more));
            }
    };
    stand_in::put(stream, work, /*is_kernel=*/true);
    return kSuccess;
}
