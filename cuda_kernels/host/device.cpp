// The CUDA device: the C ABI of dashinfer_device.h over driver, kernels and programs.
#include "device.h"

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "program.h"

namespace di {

namespace {

using Device = std::shared_ptr<OpenDevice>;

constexpr int kOldestChip = 70;

int probe(char* text, size_t size) {
    const Why why{text, size};
    if (size) text[0] = 0;
    Driver driver;
    return driver.load(why);
}

// "" and null mean the first GPU.
int index_of(const char* isa, int devices, int* index, Why why) {
    *index = 0;
    if (!isa || !*isa) return DI_OK;
    char* end = nullptr;
    const long value = std::strtol(isa, &end, 10);
    if (*end || value < 0 || value >= devices)
        return why.fail(DI_EINVAL, "there is no GPU '%.20s'; this machine has %d, use cuda:0 to cuda:%d", isa, devices,
                        devices - 1);
    *index = static_cast<int>(value);
    return DI_OK;
}

int describe_chip(OpenDevice* device, Why why) {
    const Driver& d = device->driver;
    int major = 0, minor = 0;
    d.cuDeviceGetAttribute(&major, kArchMajor, device->handle);
    d.cuDeviceGetAttribute(&minor, kArchMinor, device->handle);
    d.cuDeviceGetAttribute(&device->chip.processors, kProcessors, device->handle);
    d.cuDeviceGetAttribute(&device->chip.shared_bytes, kSharedBytes, device->handle);
    d.cuDeviceGetName(device->name, sizeof device->name, device->handle);
    device->chip.arch = 10 * major + minor;
    if (device->chip.arch >= kOldestChip) return DI_OK;
    return why.fail(DI_EUNSUPPORTED, "%s has compute capability %d.%d; 7.0 or newer is needed", device->name, major,
                    minor);
}

int open_device(const di_options* options, void** out, char* text, size_t size) {
    *out = nullptr;
    const Why why{text, size};
    Device device(new (std::nothrow) OpenDevice, [](OpenDevice* opened) {
        if (!opened) return;
        if (opened->context) {
            {
                const ContextScope scope(opened->driver, opened->context);
                opened->cublaslt.close();
                opened->modules.unload();
            }
            opened->driver.cuDevicePrimaryCtxRelease_v2(opened->handle);
        }
        delete opened;
    });
    if (!device) return why.fail(DI_ENOMEM, "out of memory");
    Driver& d = device->driver;
    int index;
    if (const int bad = d.load(why)) return bad;
    if (const int bad = index_of(options->isa, d.devices, &index, why)) return bad;
    if (const int bad = d.check(d.cuDeviceGet(&device->handle, index), why, "the GPU does not answer")) return bad;
    if (const int bad = describe_chip(device.get(), why)) return bad;
    if (const int bad =
            d.check(d.cuDevicePrimaryCtxRetain(&device->context, device->handle), why, "the GPU does not open"))
        return bad;
    const ContextScope scope(d, device->context);
    if (const int bad = device->modules.load(device->chip, why)) return bad;
    *out = new (std::nothrow) Device(device);
    return *out ? DI_OK : why.fail(DI_ENOMEM, "out of memory");
}

// Programs that are still open keep the GPU until they are freed.
void close_device(void* device) { delete static_cast<Device*>(device); }

int info(void* opaque, di_info* out) {
    const OpenDevice& device = **static_cast<Device*>(opaque);
    const uint32_t size = out->struct_size;
    *out = di_info{};
    out->struct_size = size;
    out->threads = device.chip.processors;
    out->col_align = kCell;
    out->head_align = kCell;
    out->async_depth = kStepsInFlight;
    const ContextScope scope(device.driver, device.context);
    size_t free_bytes = 0, total = 0;
    device.driver.cuMemGetInfo_v2(&free_bytes, &total);
    out->memory_total = static_cast<int64_t>(total);
    out->memory_free = static_cast<int64_t>(free_bytes);
    std::snprintf(out->tier, sizeof out->tier, "%.31s", device.modules.description().c_str());
    std::snprintf(out->detail, sizeof out->detail, "%.90s, CUDA %d.%d", device.name, device.driver.version / 1000,
                  device.driver.version % 1000 / 10);
    return DI_OK;
}

int program_create(void* device, const di_program_desc* desc, void** out, char* text, size_t size) {
    *out = nullptr;
    const Why why{text, size};
    if (desc->struct_size < offsetof(di_program_desc, experts_per_token))
        return why.fail(DI_EINVAL, "program: its description is of an older interface");
    di_program_desc known{};  // fields that the caller does not know stay 0
    std::memcpy(&known, desc, std::min<size_t>(desc->struct_size, sizeof known));
    int status = DI_OK;
    *out = Program::create(*static_cast<Device*>(device), known, why, &status);
    return status;
}

void program_free(void* program) { delete static_cast<Program*>(program); }

int weight_write(void* program, int32_t weight, int32_t row0, int32_t rows, const void* const* row_data, uint8_t source,
                 char* text, size_t size) {
    return static_cast<Program*>(program)->weight_write(weight, row0, rows, row_data, source, {text, size});
}

int weight_write_codes(void* program, int32_t weight, int32_t row0, int32_t rows, const uint8_t* const* codes,
                       const float* const* scales, const int16_t* const* zeros, char* text, size_t size) {
    return static_cast<Program*>(program)->weight_write_codes(weight, row0, rows, codes, scales, zeros, {text, size});
}

int submit(void* program, const di_step* step, uint64_t* ticket, char* text, size_t size) {
    const Why why{text, size};
    if (step->struct_size < offsetof(di_step, out_hidden))
        return why.fail(DI_EINVAL, "step: its description is of an older interface");
    di_step known{};  // fields that the caller does not know stay 0
    std::memcpy(&known, step, std::min<size_t>(step->struct_size, sizeof known));
    return static_cast<Program*>(program)->submit(known, ticket, why);
}

int wait(void* program, uint64_t ticket, char* text, size_t size) {
    return static_cast<Program*>(program)->wait(ticket, {text, size});
}

int64_t kv_block_bytes(void* program) { return static_cast<Program*>(program)->block_bytes(); }

int kv_move(void* program, int to_host, int32_t n, const int32_t* blocks, void* const* host, uint64_t* ticket) {
    return static_cast<Program*>(program)->kv_move(to_host != 0, n, blocks, host, ticket);
}

int stats(void* program, di_stats* out) {
    static_cast<Program*>(program)->stats(out);
    return DI_OK;
}

int profile(void* program, int on) {
    static_cast<Program*>(program)->profile(on != 0);
    return DI_OK;
}

int slot_write(void* program, int32_t slot, int32_t rows, const float* data) {
    return static_cast<Program*>(program)->slot_write(slot, rows, data);
}

int slot_read(void* program, int32_t slot, int32_t rows, float* data) {
    return static_cast<Program*>(program)->slot_read(slot, rows, data);
}

constexpr di_device_api kApi = {
    DI_ABI_VERSION,
    sizeof(di_device_api),
    "cuda",
    probe,
    open_device,
    close_device,
    info,
    program_create,
    program_free,
    weight_write,
    weight_write_codes,
    submit,
    wait,
    kv_block_bytes,
    kv_move,
    stats,
    profile,
    slot_write,
    slot_read,
};

}  // namespace

}  // namespace di

extern "C" __attribute__((visibility("default"))) const di_device_api* di_cuda_api() { return &di::kApi; }
