// The CPU device: the C ABI of dashinfer_device.h over tiers, team and programs.
#include "device.h"

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <new>

#include "cpu_info.h"
#include "os.h"
#include "program.h"
#include "tier.h"

namespace di {
namespace {

constexpr int kPageKib = 1024;

int probe(char* why, size_t why_bytes) {
    if (why_bytes) why[0] = 0;
    return DI_OK;
}

void close_device(void* opaque) {
    auto* device = static_cast<OpenDevice*>(opaque);
    if (!device) return;
    delete device->cpu.team;
    delete device;
}

int open_device(const di_options* options, void** out, char* why, size_t why_bytes) {
    *out = nullptr;
    const Tier* tier = find_tier(options->isa, why, why_bytes);
    if (!tier) return DI_EUNSUPPORTED;
    const int threads = options->threads > 0 ? options->threads : os_usable_cpus();
    if (threads > kMaxThreads)
        return std::snprintf(why, why_bytes, "%d threads; at most %d", threads, kMaxThreads), DI_EINVAL;
    auto* device = new (std::nothrow) OpenDevice{};
    if (!device) return std::snprintf(why, why_bytes, "out of memory"), DI_ENOMEM;
    device->tier = tier;
    device->cpu.kernels = tier->table();
    device->cpu.team = Team::create(threads, why, why_bytes);
    if (!device->cpu.team) return delete device, DI_ENOMEM;
    *out = device;
    return DI_OK;
}

int info(void* opaque, di_info* out) {
    const auto* device = static_cast<OpenDevice*>(opaque);
    const uint32_t size = out->struct_size;
    *out = di_info{};
    out->struct_size = size;
    out->threads = device->cpu.team->threads();
    out->col_align = kCell;
    out->head_align = kCell;
    out->async_depth = 1;
    out->unified_memory = 1;
    os_memory(&out->memory_total, &out->memory_free);
    std::snprintf(out->tier, sizeof out->tier, "%s", device->tier->name);
    const CpuInfo& cpu = cpu_info();
    std::snprintf(out->detail, sizeof out->detail, "%.60s, L2 %u KiB", cpu.model[0] ? cpu.model : cpu.vendor,
                  cpu.l2 / kPageKib);
    return DI_OK;
}

int program_create(void* opaque, const di_program_desc* desc, void** out, char* why, size_t why_bytes) {
    *out = nullptr;
    if (desc->struct_size < offsetof(di_program_desc, experts_per_token))
        return std::snprintf(why, why_bytes, "program of an older interface"), DI_EINVAL;
    di_program_desc known{};
    std::memcpy(&known, desc, std::min<size_t>(desc->struct_size, sizeof known));
    *out = Program::create(&static_cast<OpenDevice*>(opaque)->cpu, known, why, why_bytes);
    return *out ? DI_OK : DI_EUNSUPPORTED;
}

void program_free(void* program) { delete static_cast<Program*>(program); }

const Weight* find_weight(void* program, int32_t id, char* why, size_t why_bytes) {
    const Weight* weight = static_cast<Program*>(program)->weight(id);
    if (!weight) std::snprintf(why, why_bytes, "no weight %d", id);
    return weight;
}

int weight_write(void* program, int32_t id, int32_t row0, int32_t rows, const void* const* row_data, uint8_t source,
                 char* why, size_t why_bytes) {
    if (source > DI_BF16) return std::snprintf(why, why_bytes, "weight %d: source type %d", id, source), DI_EINVAL;
    const Weight* weight = find_weight(program, id, why, why_bytes);
    if (!weight) return DI_EINVAL;
    const Program& owner = *static_cast<Program*>(program);
    const bool is_vector = weight->desc.kind == DI_WEIGHT_VECTOR && row0 == 0 && rows == 1 && source == DI_F32;
    if (is_vector && !owner.accepts(id, row_data[0], why, why_bytes)) return DI_EINVAL;
    return weight->write(owner.kernels(), row0, rows, row_data, static_cast<DType>(source), id, why, why_bytes);
}

int weight_write_codes(void* program, int32_t id, int32_t row0, int32_t rows, const uint8_t* const* codes,
                       const float* const* scales, const int16_t* const* zeros, char* why, size_t why_bytes) {
    const Weight* weight = find_weight(program, id, why, why_bytes);
    if (!weight) return DI_EINVAL;
    const KernelTable& kernels = static_cast<Program*>(program)->kernels();
    return weight->write_codes(kernels, row0, rows, codes, scales, zeros, id, why, why_bytes);
}

int submit(void* program, const di_step* step, uint64_t* ticket, char* why, size_t why_bytes) {
    *ticket = 0;
    if (step->struct_size < sizeof(di_step))
        return std::snprintf(why, why_bytes, "step of an older interface"), DI_EINVAL;
    return static_cast<Program*>(program)->run(*step, why, why_bytes);
}

int wait(void*, uint64_t, char*, size_t) { return DI_OK; }

int64_t kv_block_bytes(void* program) { return static_cast<Program*>(program)->block_bytes(); }

int kv_move(void* program, int to_host, int32_t n, const int32_t* blocks, void* const* host, uint64_t* ticket) {
    *ticket = 0;
    return static_cast<Program*>(program)->kv_move(to_host != 0, n, blocks, host);
}

int stats(void* program, di_stats* out) { return static_cast<Program*>(program)->stats(out), DI_OK; }
int profile(void* program, int on) { return static_cast<Program*>(program)->profile(on != 0), DI_OK; }
int slot_write(void* program, int32_t slot, int32_t rows, const float* data) {
    return static_cast<Program*>(program)->slot_write(slot, rows, data);
}
int slot_read(void* program, int32_t slot, int32_t rows, float* data) {
    return static_cast<Program*>(program)->slot_read(slot, rows, data);
}

constexpr di_device_api kApi = {
    DI_ABI_VERSION,
    sizeof(di_device_api),
    "cpu",
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

const di_device_api* cpu_device_api() { return &kApi; }

}  // namespace di
