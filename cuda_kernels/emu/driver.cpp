// A stand-in for libcuda.so.1: the entry points that the host library looks up, on the emulator.
//
// It is as late as a driver may be: what is put on a stream runs when somebody waits for it. Only copies may be told to
// hurry. Memory begins as NaN and ends at a page that nobody may touch. A module's image is "DIEMU", a zero byte, and
// the path of a kernel library made for the emulator.
//
// Environment, read by cuInit: DASHINFER_EMU_ARCH (80), DASHINFER_EMU_MEMORY (bytes of device memory),
// DASHINFER_EMU_DEVICES (1).
#include <dlfcn.h>
#include <sys/mman.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "stand_in.h"

namespace {

using DevicePointer = uint64_t;
using Operation = std::function<void()>;

enum Result : int {
    kSuccess = 0,
    kInvalidValue = 1,
    kOutOfMemory = 2,
    kNotInitialized = 3,
    kNoDevice = 100,
    kInvalidDevice = 101,
    kInvalidImage = 200,
    kInvalidHandle = 400,
    kNotFound = 500,
    kLaunchOutOfResources = 701,
    kCaptureUnsupported = 900
};

constexpr size_t kPage = 4096;
constexpr size_t kAlignment = 256;
constexpr size_t kDead = 512;  // freed allocations whose addresses are not given out again

struct Graph {
    std::vector<Operation> operations;
};

struct Stream {
    std::deque<Operation> waiting;
    uint64_t added = 0, ran = 0;
    std::unique_ptr<Graph> capture;
};

struct Event {
    Stream* stream = nullptr;
    uint64_t at = 0;  // operations of the stream that come before it
    std::shared_ptr<std::chrono::steady_clock::time_point> time;
};

struct Module {
    void* library;
};

struct Function {
    void (*run)(const unsigned*, size_t, void**) = nullptr;
    std::vector<int> sizes;
    int dynamic_shared = 48 << 10;
};

struct Block {
    void* base;
    size_t mapped, bytes;
};

struct State {
    std::recursive_mutex mutex;
    bool ready = false, hurries = false;
    int arch = 80, devices = 1;
    size_t memory = size_t{512} << 20, used = 0;
    std::map<DevicePointer, Block> device_memory;
    std::deque<Block> dead;
    std::map<uintptr_t, size_t> pinned;
    std::map<std::string, long> counts;
    std::map<std::string, long> failures;  // entry point → how many calls from now on until one fails
};

State& state() {
    static State* s = new State;  // never destroyed: streams may outlive static objects
    return *s;
}

using Lock = std::lock_guard<std::recursive_mutex>;

void run_until(Stream& stream, uint64_t at) {
    while (stream.ran < at) {
        Operation operation = std::move(stream.waiting.front());
        stream.waiting.pop_front();
        ++stream.ran;
        operation();
    }
}

bool is_pinned(const void* p, size_t bytes) {
    State& s = state();
    const auto at = reinterpret_cast<uintptr_t>(p);
    auto next = s.pinned.upper_bound(at);
    if (next == s.pinned.begin()) return false;
    --next;
    return at + bytes <= next->first + next->second;
}

unsigned char* bytes_at(DevicePointer p) { return reinterpret_cast<unsigned char*>(p); }

}  // namespace

// ---- what all stand-ins use ----

namespace stand_in {

bool enter(const char* name) {
    const Lock lock(state().mutex);
    State& s = state();
    ++s.counts[name];
    const auto found = s.failures.find(name);
    if (found == s.failures.end() || --found->second > 0) return false;
    s.failures.erase(found);
    return true;
}

long environment(const char* name, long otherwise) {
    const char* text = std::getenv(name);
    return text && *text ? std::atol(text) : otherwise;
}

int arch() { return state().arch; }

void put(void* handle, Operation operation, bool is_kernel) {
    const Lock lock(state().mutex);
    auto& stream = *static_cast<Stream*>(handle);
    if (stream.capture) {
        stream.capture->operations.push_back(std::move(operation));
        return;
    }
    stream.waiting.push_back(std::move(operation));
    ++stream.added;
    if (state().hurries && !is_kernel && stream.waiting.size() == 1) run_until(stream, stream.added);
}

bool is_device(DevicePointer p, size_t bytes) {
    const Lock lock(state().mutex);
    State& s = state();
    auto next = s.device_memory.upper_bound(p);
    if (next == s.device_memory.begin()) return false;
    --next;
    return p + bytes <= next->first + next->second.bytes;
}

}  // namespace stand_in

using stand_in::enter, stand_in::environment, stand_in::is_device, stand_in::put;

// ---- what tests ask ----

EXPORT long emu_count(const char* name) {
    const Lock lock(state().mutex);
    if (!std::strcmp(name, "allocations")) return static_cast<long>(state().device_memory.size());
    if (!std::strcmp(name, "pinned")) return static_cast<long>(state().pinned.size());
    const auto found = state().counts.find(name);
    return found == state().counts.end() ? 0 : found->second;
}
// The nth call of an entry point from now on fails.
EXPORT void emu_fail(const char* name, long nth) {
    const Lock lock(state().mutex);
    state().failures[name] = nth;
}
// From now on copies happen at once where nothing waits before them on their stream: beside the kernels of others.
EXPORT void emu_hurry(int on) {
    const Lock lock(state().mutex);
    state().hurries = on != 0;
}

// ---- the driver ----

EXPORT int cuInit(unsigned) {
    const Lock lock(state().mutex);
    State& s = state();
    s.arch = static_cast<int>(environment("DASHINFER_EMU_ARCH", 80));
    s.devices = static_cast<int>(environment("DASHINFER_EMU_DEVICES", 1));
    s.memory = static_cast<size_t>(environment("DASHINFER_EMU_MEMORY", 512L << 20));
    if (enter("cuInit")) return kNotInitialized;
    s.ready = s.devices > 0;
    return s.ready ? kSuccess : kNoDevice;
}
EXPORT int cuDriverGetVersion(int* version) { return *version = 12090, kSuccess; }
EXPORT int cuDeviceGetCount(int* count) { return *count = state().devices, kSuccess; }
EXPORT int cuDeviceGet(int* device, int index) {
    if (index < 0 || index >= state().devices) return kInvalidDevice;
    return *device = index, kSuccess;
}
EXPORT int cuDeviceGetName(char* name, int size, int) {
    return std::snprintf(name, static_cast<size_t>(size), "emulated sm_%d", state().arch), kSuccess;
}
EXPORT int cuDeviceGetAttribute(int* value, int attribute, int) {
    const int arch = state().arch;
    switch (attribute) {
        case 16:
            *value = 2;
            break;  // multiprocessors
        case 75:
            *value = arch / 10;
            break;  // compute capability
        case 76:
            *value = arch % 10;
            break;
        case 97:
            *value = arch == 70   ? 96 << 10
                     : arch == 75 ? 64 << 10
                     : arch == 80 ? 163 << 10
                     : arch < 90  ? 99 << 10
                                  : 227 << 10;
            break;
        default:
            return kInvalidValue;
    }
    return kSuccess;
}
EXPORT int cuDevicePrimaryCtxRetain(void** context, int device) {
    return *context = reinterpret_cast<void*>(static_cast<uintptr_t>(device) + 1), kSuccess;
}
EXPORT int cuDevicePrimaryCtxRelease_v2(int) { return kSuccess; }
EXPORT int cuCtxPushCurrent_v2(void*) { return kSuccess; }
EXPORT int cuCtxPopCurrent_v2(void**) { return kSuccess; }
EXPORT int cuGetErrorString(int code, const char** text) {
    *text = code == kOutOfMemory ? "out of memory"
            : code == kNoDevice  ? "no CUDA-capable device is detected"
                                 : "emulated error";
    return kSuccess;
}

EXPORT int cuMemGetInfo_v2(size_t* free_bytes, size_t* total) {
    const Lock lock(state().mutex);
    *free_bytes = state().memory - state().used;
    *total = state().memory;
    return kSuccess;
}
EXPORT int cuMemAlloc_v2(DevicePointer* out, size_t bytes) {
    const Lock lock(state().mutex);
    State& s = state();
    if (enter("cuMemAlloc_v2") || bytes > s.memory - s.used) return kOutOfMemory;
    if (bytes == 0) return kInvalidValue;
    const size_t body = (bytes + kPage - 1) / kPage * kPage, mapped = body + 2 * kPage;
    void* base = mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) return kOutOfMemory;
    unsigned char* begin = static_cast<unsigned char*>(base) + kPage;
    if (mprotect(begin, body, PROT_READ | PROT_WRITE)) return munmap(base, mapped), kOutOfMemory;
    std::memset(begin, 0xFF, body);
    const size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    *out = reinterpret_cast<DevicePointer>(begin + body - rounded);
    s.device_memory[*out] = {base, mapped, bytes};
    s.used += bytes;
    return kSuccess;
}
EXPORT int cuMemFree_v2(DevicePointer p) {
    const Lock lock(state().mutex);
    const auto found = state().device_memory.find(p);
    if (found == state().device_memory.end()) return kInvalidValue;
    state().used -= found->second.bytes;
    // Its addresses stay dead for a while, so that what still uses them faults.
    mprotect(found->second.base, found->second.mapped, PROT_NONE);
    madvise(found->second.base, found->second.mapped, MADV_DONTNEED);
    state().dead.push_back(found->second);
    if (state().dead.size() > kDead) {
        munmap(state().dead.front().base, state().dead.front().mapped);
        state().dead.pop_front();
    }
    state().device_memory.erase(found);
    return kSuccess;
}
EXPORT int cuMemHostAlloc(void** out, size_t bytes, unsigned) {
    const Lock lock(state().mutex);
    if (enter("cuMemHostAlloc")) return kOutOfMemory;
    *out = std::aligned_alloc(kPage, (bytes + kPage - 1) / kPage * kPage);
    if (!*out) return kOutOfMemory;
    std::memset(*out, 0xFF, bytes);
    state().pinned[reinterpret_cast<uintptr_t>(*out)] = bytes;
    return kSuccess;
}
EXPORT int cuMemFreeHost(void* p) {
    const Lock lock(state().mutex);
    if (!state().pinned.erase(reinterpret_cast<uintptr_t>(p))) return kInvalidValue;
    std::free(p);
    return kSuccess;
}

EXPORT int cuMemcpyHtoDAsync_v2(DevicePointer to, const void* from, size_t bytes, void* stream) {
    const Lock lock(state().mutex);
    if (enter("cuMemcpyHtoDAsync_v2") || !is_device(to, bytes)) return kInvalidValue;
    if (is_pinned(from, bytes)) return put(stream, [=] { std::memcpy(bytes_at(to), from, bytes); }), kSuccess;
    const auto* source = static_cast<const unsigned char*>(from);  // pageable memory is staged before the call returns
    auto staged = std::make_shared<std::vector<unsigned char>>(source, source + bytes);
    put(stream, [=] { std::memcpy(bytes_at(to), staged->data(), bytes); });
    return kSuccess;
}
EXPORT int cuMemcpyDtoHAsync_v2(void* to, DevicePointer from, size_t bytes, void* handle) {
    const Lock lock(state().mutex);
    if (enter("cuMemcpyDtoHAsync_v2") || !is_device(from, bytes)) return kInvalidValue;
    put(handle, [=] { std::memcpy(to, bytes_at(from), bytes); });
    auto& stream = *static_cast<Stream*>(handle);
    if (!is_pinned(to, bytes) && !stream.capture) run_until(stream, stream.added);
    return kSuccess;
}
EXPORT int cuMemcpyDtoDAsync_v2(DevicePointer to, DevicePointer from, size_t bytes, void* stream) {
    const Lock lock(state().mutex);
    if (!is_device(to, bytes) || !is_device(from, bytes)) return kInvalidValue;
    put(stream, [=] { std::memcpy(bytes_at(to), bytes_at(from), bytes); });
    return kSuccess;
}
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
// From host to device only.
EXPORT int cuMemcpy2DAsync_v2(const Copy2D* copy, void* stream) {
    if (copy->source_kind != 1 || copy->target_kind != 2) return kInvalidValue;
    for (size_t row = 0; row < copy->height; ++row) {
        const auto* from = static_cast<const unsigned char*>(copy->source_host) + row * copy->source_pitch;
        const int result =
            cuMemcpyHtoDAsync_v2(copy->target_device + row * copy->target_pitch, from, copy->width, stream);
        if (result) return result;
    }
    return kSuccess;
}
EXPORT int cuMemsetD8Async(DevicePointer to, unsigned char value, size_t bytes, void* stream) {
    const Lock lock(state().mutex);
    if (!is_device(to, bytes)) return kInvalidValue;
    put(stream, [=] { std::memset(bytes_at(to), value, bytes); });
    return kSuccess;
}

EXPORT int cuStreamCreate(void** stream, unsigned) { return *stream = new Stream, kSuccess; }
EXPORT int cuStreamDestroy_v2(void* handle) {
    const Lock lock(state().mutex);
    auto* stream = static_cast<Stream*>(handle);
    run_until(*stream, stream->added);
    delete stream;
    return kSuccess;
}
EXPORT int cuStreamSynchronize(void* handle) {
    const Lock lock(state().mutex);
    if (enter("cuStreamSynchronize")) return kLaunchOutOfResources;
    auto& stream = *static_cast<Stream*>(handle);
    if (stream.capture) return kCaptureUnsupported;
    run_until(stream, stream.added);
    return kSuccess;
}
EXPORT int cuEventCreate(void** event, unsigned) { return *event = new Event, kSuccess; }
EXPORT int cuEventDestroy_v2(void* event) { return delete static_cast<Event*>(event), kSuccess; }
EXPORT int cuEventRecord(void* handle, void* on) {
    const Lock lock(state().mutex);
    auto& event = *static_cast<Event*>(handle);
    auto& stream = *static_cast<Stream*>(on);
    if (stream.capture) return kCaptureUnsupported;
    auto time = std::make_shared<std::chrono::steady_clock::time_point>();
    put(on, [time] { *time = std::chrono::steady_clock::now(); });
    event = {&stream, stream.added, time};
    return kSuccess;
}
EXPORT int cuEventSynchronize(void* handle) {
    const Lock lock(state().mutex);
    if (enter("cuEventSynchronize")) return kLaunchOutOfResources;
    auto& event = *static_cast<Event*>(handle);
    if (event.stream) run_until(*event.stream, event.at);
    return kSuccess;
}
EXPORT int cuEventElapsedTime(float* milliseconds, void* from, void* to) {
    const Lock lock(state().mutex);
    const auto &a = static_cast<Event*>(from)->time, &b = static_cast<Event*>(to)->time;
    if (!a || !b) return kInvalidHandle;
    *milliseconds = std::chrono::duration<float, std::milli>(*b - *a).count();
    return kSuccess;
}
EXPORT int cuStreamWaitEvent(void* stream, void* handle, unsigned) {
    const Lock lock(state().mutex);
    if (enter("cuStreamWaitEvent")) return kInvalidHandle;
    const Event event = *static_cast<Event*>(handle);
    if (event.stream && event.stream != stream) put(stream, [=] { run_until(*event.stream, event.at); });
    return kSuccess;
}

EXPORT int cuStreamBeginCapture_v2(void* handle, int) {
    const Lock lock(state().mutex);
    auto& stream = *static_cast<Stream*>(handle);
    if (stream.capture) return kCaptureUnsupported;
    stream.capture = std::make_unique<Graph>();
    return kSuccess;
}
EXPORT int cuStreamEndCapture(void* handle, void** graph) {
    const Lock lock(state().mutex);
    if (enter("cuStreamEndCapture"))
        return static_cast<Stream*>(handle)->capture.reset(), *graph = nullptr, kCaptureUnsupported;
    *graph = static_cast<Stream*>(handle)->capture.release();
    return *graph ? kSuccess : kInvalidValue;
}
EXPORT int cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
    if (enter("cuGraphInstantiateWithFlags")) return kOutOfMemory;
    return *executable = new Graph(*static_cast<Graph*>(graph)), kSuccess;
}
EXPORT int cuGraphLaunch(void* executable, void* stream) {
    const Lock lock(state().mutex);
    if (enter("cuGraphLaunch")) return kLaunchOutOfResources;
    for (const Operation& operation : static_cast<Graph*>(executable)->operations) put(stream, operation, true);
    return kSuccess;
}
EXPORT int cuGraphDestroy(void* graph) { return delete static_cast<Graph*>(graph), kSuccess; }
EXPORT int cuGraphExecDestroy(void* graph) { return delete static_cast<Graph*>(graph), kSuccess; }

EXPORT int cuModuleLoadData(void** module, const void* image) {
    const Lock lock(state().mutex);
    constexpr char kMagic[] = "DIEMU";
    if (std::memcmp(image, kMagic, sizeof kMagic)) return kInvalidImage;
    void* library = dlopen(static_cast<const char*>(image) + sizeof kMagic, RTLD_NOW | RTLD_LOCAL);
    if (!library) return kInvalidImage;
    return *module = new Module{library}, kSuccess;
}
EXPORT int cuModuleUnload(void* module) {
    dlclose(static_cast<Module*>(module)->library);
    return delete static_cast<Module*>(module), kSuccess;
}
EXPORT int cuModuleGetFunction(void** function, void* module, const char* name) {
    const Lock lock(state().mutex);
    void* library = static_cast<Module*>(module)->library;
    const auto run = dlsym(library, (std::string("emu_run_") + name).c_str());
    const auto sizes = reinterpret_cast<int (*)(int*)>(dlsym(library, (std::string("emu_sizes_") + name).c_str()));
    if (!run || !sizes) return kNotFound;
    int values[64];
    const int count = sizes(values);
    auto* made = new Function;  // lives as long as the process, as in a driver it lives as long as its module
    made->run = reinterpret_cast<void (*)(const unsigned*, size_t, void**)>(run);
    made->sizes.assign(values, values + count);
    *function = made;
    return kSuccess;
}
EXPORT int cuFuncSetAttribute(void* function, int attribute, int value) {
    int limit = 0;
    cuDeviceGetAttribute(&limit, 97, 0);
    if (attribute != 8 || value > limit) return kInvalidValue;
    static_cast<Function*>(function)->dynamic_shared = value;
    return kSuccess;
}
EXPORT int cuLaunchKernel(void* handle, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                          unsigned shared, void* stream, void** parameters, void**) {
    const Lock lock(state().mutex);
    if (enter("cuLaunchKernel")) return kLaunchOutOfResources;
    const auto* function = static_cast<Function*>(handle);
    if (!gx || !gy || !gz || gy > 65535 || gz > 65535 || gx > 0x7fffffffu || bx * by * bz == 0 || bx * by * bz > 1024)
        return kInvalidValue;
    if (static_cast<int>(shared) > function->dynamic_shared) return kInvalidValue;
    std::vector<std::vector<unsigned char>> values;
    for (size_t i = 0; i < function->sizes.size(); ++i) {
        const auto* p = static_cast<const unsigned char*>(parameters[i]);
        values.emplace_back(p, p + function->sizes[i]);
    }
    put(
        stream,
        [=] {
            const unsigned shape[6] = {gx, gy, gz, bx, by, bz};
            std::vector<void*> pointers;
            for (const auto& value : values) pointers.push_back(const_cast<unsigned char*>(value.data()));
            function->run(shape, shared, pointers.data());
        },
        true);
    return kSuccess;
}
