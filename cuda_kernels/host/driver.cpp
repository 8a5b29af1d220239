#include "driver.h"

#include <dlfcn.h>

#include "settings.h"

namespace di {

namespace {

constexpr int kCudaNoDevice = 100, kCudaStub = 34;
constexpr int kOldestVersion = 11040;

const char* explain(int code) {
    switch (code) {
        case kCudaNoDevice:
            return "no NVIDIA GPU is visible to this process";
        case kCudaStub:
            return "the library found is the toolkit's stub, not a driver";
        case 803:
            return "the driver library and the kernel module have different versions; reboot or reinstall the driver";
        case 804:
            return "the GPU does not support this driver library in compatibility mode";
        default:
            return nullptr;
    }
}

}  // namespace

int Driver::load(Why why) {
    const std::string named = setting("driver");
    library_ = dlopen(named.empty() ? "libcuda.so.1" : named.c_str(),
                      RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);  // it has threads of its own
    if (!library_)
        return why.fail(DI_EUNSUPPORTED,
                        "the NVIDIA driver's library was not found (%s); install the driver, or use device='cpu'",
                        dlerror());
#define DI_RESOLVE(name, ...)                                    \
    *reinterpret_cast<void**>(&(name)) = dlsym(library_, #name); \
    if (!(name)) return why.fail(DI_EUNSUPPORTED, "the NVIDIA driver lacks %s; version 470 or newer is needed", #name);
    DI_DRIVER(DI_RESOLVE)
#undef DI_RESOLVE
    if (const int result = cuInit(0)) {
        const char* reason = explain(result);
        if (reason) return why.fail(DI_EUNSUPPORTED, "CUDA is not usable: %s", reason);
        return check(result, why, "CUDA does not start"), DI_EUNSUPPORTED;
    }
    cuDriverGetVersion(&version);
    cuDeviceGetCount(&devices);
    if (version < kOldestVersion)
        return why.fail(DI_EUNSUPPORTED, "the NVIDIA driver speaks CUDA %d.%d; 11.4 or newer is needed", version / 1000,
                        version % 1000 / 10);
    if (devices < 1) return why.fail(DI_EUNSUPPORTED, "CUDA is not usable: %s", explain(kCudaNoDevice));
    return DI_OK;
}

Driver::~Driver() {
    if (library_) dlclose(library_);
}

int Driver::check(int result, Why why, const char* what) const {
    if (result == 0) return DI_OK;
    const char* text = nullptr;
    cuGetErrorString(result, &text);
    return why.fail(result == kCudaOutOfMemory ? DI_ENOMEM : DI_EDEAD, "%s: %s (CUDA error %d)", what,
                    text ? text : "unknown error", result);
}

}  // namespace di
