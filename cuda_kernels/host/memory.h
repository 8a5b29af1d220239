// Device memory and pinned host memory that free themselves.
#pragma once
#include <utility>

#include "driver.h"

namespace di {

class DeviceMemory {
  public:
    explicit DeviceMemory(const Driver& driver) : driver_(&driver) {}
    ~DeviceMemory() { release(); }
    DeviceMemory(const DeviceMemory&) = delete;
    DeviceMemory& operator=(const DeviceMemory&) = delete;

    // `bytes` of memory in the current context, at least one; `what` names it in the reason.
    int allocate(size_t bytes, Why why, const char* what) {
        release();
        bytes_ = bytes ? bytes : 1;
        const int result = driver_->cuMemAlloc_v2(&at_, bytes_);
        if (result == 0) return DI_OK;
        at_ = 0;
        return why.fail(DI_ENOMEM, "the GPU has no memory for %zu bytes of %s", std::exchange(bytes_, 0), what);
    }
    void release() {
        if (at_) driver_->cuMemFree_v2(at_);
        at_ = bytes_ = 0;
    }

    DevicePointer at() const { return at_; }
    size_t bytes() const { return bytes_; }

  private:
    const Driver* driver_;
    DevicePointer at_ = 0;
    size_t bytes_ = 0;
};

class PinnedMemory {
  public:
    explicit PinnedMemory(const Driver& driver) : driver_(&driver) {}
    ~PinnedMemory() { release(); }
    PinnedMemory(const PinnedMemory&) = delete;
    PinnedMemory& operator=(const PinnedMemory&) = delete;

    int allocate(size_t bytes, Why why, const char* what) {
        release();
        bytes_ = bytes ? bytes : 1;
        if (driver_->cuMemHostAlloc(&data_, bytes_, kPortableMemory) == 0) return DI_OK;
        data_ = nullptr;
        return why.fail(DI_ENOMEM, "no pinned memory for %zu bytes of %s", std::exchange(bytes_, 0), what);
    }
    void release() {
        if (data_) driver_->cuMemFreeHost(data_);
        data_ = nullptr;
        bytes_ = 0;
    }

    unsigned char* data() const { return static_cast<unsigned char*>(data_); }
    size_t bytes() const { return bytes_; }

  private:
    const Driver* driver_;
    void* data_ = nullptr;
    size_t bytes_ = 0;
};

}  // namespace di
