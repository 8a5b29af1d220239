// What the stand-ins for NVIDIA's libraries share: they are one library, whose streams and memory are the driver's.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace stand_in {

// Puts work on a stream of the driver's, to be run or captured.
void put(void* stream, std::function<void()> operation, bool is_kernel = false);

// Whether a range lies within one allocation of device memory.
bool is_device(uint64_t p, size_t bytes);

// Counts a call; true where a test asked for this one to fail.
bool enter(const char* name);

int arch();  // of the GPU
long environment(const char* name, long otherwise);

}  // namespace stand_in
