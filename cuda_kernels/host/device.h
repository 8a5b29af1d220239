// An open GPU: driver, context, kernels.
#pragma once
#include <mutex>

#include "cublaslt.h"
#include "modules.h"

namespace di {

struct OpenDevice {
    OpenDevice() : modules(driver) {}

    Driver driver;
    int handle = 0;  // the driver's number of the GPU
    void* context = nullptr;
    Chip chip{};
    Modules modules;
    CublasLt cublaslt;   // opened by the first program that has use for it
    std::mutex lookups;  // modules find kernels on demand
    char name[96] = "";
};

}  // namespace di
