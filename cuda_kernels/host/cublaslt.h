// cuBLASLt by dlopen: its entry points, declared here by hand, and a handle for a GPU. Their values and sizes are the
// same from version 11 to 13.
#pragma once
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>

#include "launch.h"
#include "why.h"

namespace di {

struct BlasAlgorithm {  // cublasLtMatmulAlgo_t
    uint64_t data[8];
};
struct BlasHeuristic {  // cublasLtMatmulHeuristicResult_t
    BlasAlgorithm algorithm;
    size_t workspace;
    int status;
    float waves;
    int reserved[4];
};
static_assert(sizeof(BlasAlgorithm) == 64 && sizeof(BlasHeuristic) == 96);

constexpr int kBlasF32 = 0, kBlasF16 = 2, kBlasBf16 = 14;    // cudaDataType_t
constexpr int kBlasComputeF32 = 68;                          // CUBLAS_COMPUTE_32F
constexpr int kBlasTransA = 3;                               // CUBLASLT_MATMUL_DESC_TRANSA
constexpr int kBlasMaxWorkspace = 1, kBlasMinAlignment = 5;  // preferences; alignments of A, B, C and D in a row
constexpr int kBlasTransposed = 1;                           // CUBLAS_OP_T

#define DI_CUBLASLT(F)                                                                                             \
    F(cublasLtCreate, void**)                                                                                      \
    F(cublasLtDestroy, void*)                                                                                      \
    F(cublasLtMatmulDescCreate, void**, int, int)                                                                  \
    F(cublasLtMatmulDescSetAttribute, void*, int, const void*, size_t)                                             \
    F(cublasLtMatmulDescDestroy, void*)                                                                            \
    F(cublasLtMatrixLayoutCreate, void**, int, uint64_t, uint64_t, int64_t)                                        \
    F(cublasLtMatrixLayoutDestroy, void*)                                                                          \
    F(cublasLtMatmulPreferenceCreate, void**)                                                                      \
    F(cublasLtMatmulPreferenceSetAttribute, void*, int, const void*, size_t)                                       \
    F(cublasLtMatmulPreferenceDestroy, void*)                                                                      \
    F(cublasLtMatmulAlgoGetHeuristic, void*, void*, void*, void*, void*, void*, void*, int, BlasHeuristic*, int*)  \
    F(cublasLtMatmul, void*, void*, const void*, const void*, void*, const void*, void*, const void*, const void*, \
      void*, void*, void*, const BlasAlgorithm*, void*, size_t, void*)

class CublasLt {
  public:
    CublasLt() = default;
    CublasLt(const CublasLt&) = delete;
    CublasLt& operator=(const CublasLt&) = delete;

#define DI_DECLARE(name, ...) int (*name)(__VA_ARGS__) = nullptr;
    DI_CUBLASLT(DI_DECLARE)
#undef DI_DECLARE

    // Finds a library that serves the architecture (0: any). DI_EUNSUPPORTED, with the reason, where there is none.
    int load(int arch, Why why);

    // Loads it, once, and makes a handle in the current context. False where it cannot be used; a library that is there
    // and cannot be used is told of, one that is not is not missed.
    bool open(const Chip& chip);
    void close();  // in the same context

    void* handle() const { return handle_; }
    const std::string& description() const { return description_; }  // its path and version, once it is loaded

  private:
    int load_from(const char* name, int arch, Why why);

    std::mutex mutex_;
    void* handle_ = nullptr;
    bool tried_ = false, found_ = false;
    std::string description_;
};

}  // namespace di
