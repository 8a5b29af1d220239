// The CUDA driver by dlopen: no header and no library of CUDA's is needed to build or to import. Prototypes are
// declared here.
#pragma once
#include <cstddef>
#include <cstdint>

#include "why.h"

namespace di {

using DevicePointer = uint64_t;

// CUDA_MEMCPY2D of the driver's interface.
struct Copy2D {
    size_t source_x, source_y;
    unsigned source_kind;
    const void* source_host;
    DevicePointer source_device;
    void* source_array;
    size_t source_pitch;
    size_t target_x, target_y;
    unsigned target_kind;
    void* target_host;
    DevicePointer target_device;
    void* target_array;
    size_t target_pitch;
    size_t width, height;
};
constexpr unsigned kHostMemory = 1, kDeviceMemory = 2;

enum DeviceAttribute { kProcessors = 16, kArchMajor = 75, kArchMinor = 76, kSharedBytes = 97 };
constexpr int kSharedAttribute = 8;      // of a function: dynamic shared memory
constexpr unsigned kNonBlocking = 1;     // a stream that does not wait for the default stream
constexpr unsigned kNoTiming = 2;        // an event that only orders
constexpr unsigned kPortableMemory = 1;  // pinned for all contexts
constexpr int kRelaxedCapture = 2;       // other threads may call the driver meanwhile
constexpr int kCudaOutOfMemory = 2;

#define DI_DRIVER(F)                                                                                              \
    F(cuInit, unsigned)                                                                                           \
    F(cuDriverGetVersion, int*)                                                                                   \
    F(cuDeviceGetCount, int*)                                                                                     \
    F(cuDeviceGet, int*, int)                                                                                     \
    F(cuDeviceGetName, char*, int, int)                                                                           \
    F(cuDeviceGetAttribute, int*, int, int)                                                                       \
    F(cuDevicePrimaryCtxRetain, void**, int)                                                                      \
    F(cuDevicePrimaryCtxRelease_v2, int)                                                                          \
    F(cuCtxPushCurrent_v2, void*)                                                                                 \
    F(cuCtxPopCurrent_v2, void**)                                                                                 \
    F(cuGetErrorString, int, const char**)                                                                        \
    F(cuMemGetInfo_v2, size_t*, size_t*)                                                                          \
    F(cuMemAlloc_v2, DevicePointer*, size_t)                                                                      \
    F(cuMemFree_v2, DevicePointer)                                                                                \
    F(cuMemHostAlloc, void**, size_t, unsigned)                                                                   \
    F(cuMemFreeHost, void*)                                                                                       \
    F(cuMemcpyHtoDAsync_v2, DevicePointer, const void*, size_t, void*)                                            \
    F(cuMemcpyDtoHAsync_v2, void*, DevicePointer, size_t, void*)                                                  \
    F(cuMemcpy2DAsync_v2, const Copy2D*, void*)                                                                   \
    F(cuMemsetD8Async, DevicePointer, unsigned char, size_t, void*)                                               \
    F(cuStreamCreate, void**, unsigned)                                                                           \
    F(cuStreamDestroy_v2, void*)                                                                                  \
    F(cuStreamSynchronize, void*)                                                                                 \
    F(cuStreamWaitEvent, void*, void*, unsigned)                                                                  \
    F(cuEventCreate, void**, unsigned)                                                                            \
    F(cuEventDestroy_v2, void*)                                                                                   \
    F(cuEventRecord, void*, void*)                                                                                \
    F(cuEventSynchronize, void*)                                                                                  \
    F(cuEventElapsedTime, float*, void*, void*)                                                                   \
    F(cuStreamBeginCapture_v2, void*, int)                                                                        \
    F(cuStreamEndCapture, void*, void**)                                                                          \
    F(cuGraphInstantiateWithFlags, void**, void*, unsigned long long)                                             \
    F(cuGraphLaunch, void*, void*)                                                                                \
    F(cuGraphDestroy, void*)                                                                                      \
    F(cuGraphExecDestroy, void*)                                                                                  \
    F(cuModuleLoadData, void**, const void*)                                                                      \
    F(cuModuleUnload, void*)                                                                                      \
    F(cuModuleGetFunction, void**, void*, const char*)                                                            \
    F(cuFuncSetAttribute, void*, int, int)                                                                        \
    F(cuLaunchKernel, void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**, \
      void**)

class Driver {
  public:
    Driver() = default;
    Driver(const Driver&) = delete;
    Driver& operator=(const Driver&) = delete;
    ~Driver();

#define DI_DECLARE(name, ...) int (*name)(__VA_ARGS__) = nullptr;
    DI_DRIVER(DI_DECLARE)
#undef DI_DECLARE

    int version = 0;  // 12090 is 12.9
    int devices = 0;

    // Opens libcuda.so.1, or what DASHINFER_CUDA_DRIVER names, and counts the GPUs. 0, or a DI_E… code with the reason.
    int load(Why why);

    // Turns a result of the driver into 0 or a DI_E… code with a sentence: what could not be done, and the driver's
    // words.
    int check(int result, Why why, const char* what) const;

  private:
    void* library_ = nullptr;
};

// Makes a GPU's context current for a call and gives the thread its own back afterwards.
class ContextScope {
  public:
    ContextScope(const Driver& driver, void* context) : driver_(driver) { driver_.cuCtxPushCurrent_v2(context); }
    ~ContextScope() {
        void* popped;
        driver_.cuCtxPopCurrent_v2(&popped);
    }
    ContextScope(const ContextScope&) = delete;
    ContextScope& operator=(const ContextScope&) = delete;

  private:
    const Driver& driver_;
};

}  // namespace di
