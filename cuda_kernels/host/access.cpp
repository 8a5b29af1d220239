// What reaches into a program from outside of a step: KV blocks, statistics, and activations for tests.
#include <algorithm>
#include <cstring>

#include "program.h"

namespace di {

namespace {

constexpr size_t kStagingBytes = size_t{8} << 20;

float widen(uint16_t x) {
    const uint32_t bits = uint32_t{x} << 16;
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}

uint16_t narrow(float x) {
    uint16_t bits;
    pack_row(&x, F32, 1, 1, 1, &bits, BF16);
    return bits;
}

}  // namespace

// On a stream of its own, which begins after the steps submitted so far; blocks pass through pinned memory.
int Program::kv_move(bool to_host, int n, const int32_t* blocks, void* const* host, uint64_t* ticket) {
    *ticket = 0;  // done on return
    if (n < 0 || (n > 0 && desc_.kv.layers <= 0)) return DI_EINVAL;
    for (int i = 0; i < n; ++i)
        if (blocks[i] < 0 || blocks[i] >= desc_.kv.blocks) return DI_EINVAL;
    if (n == 0) return DI_OK;
    if (broken_) return DI_EDEAD;
    const Driver& d = driver();
    const Why silent{nullptr, 0};
    const ContextScope scope(d, device_->context);
    const auto size = static_cast<size_t>(pool_.block_bytes);
    const int at_once = static_cast<int>(std::clamp<size_t>(kStagingBytes / size, 1, static_cast<size_t>(n)));
    if (staging_.bytes() < size * static_cast<size_t>(at_once))
        if (const int bad = staging_.allocate(size * static_cast<size_t>(at_once), silent, "KV blocks")) return bad;
    if (d.cuEventRecord(order_, stream_) || d.cuStreamWaitEvent(copy_stream_, order_, 0)) return fail(DI_EDEAD);
    for (int first = 0; first < n; first += at_once) {
        const int count = std::min(at_once, n - first);
        for (int i = 0; i < count; ++i) {
            unsigned char* pinned = staging_.data() + size * static_cast<size_t>(i);
            const DevicePointer block = kv_memory_.at() + size * static_cast<size_t>(blocks[first + i]);
            if (!to_host) std::memcpy(pinned, host[first + i], size);
            if (to_host ? d.cuMemcpyDtoHAsync_v2(pinned, block, size, copy_stream_)
                        : d.cuMemcpyHtoDAsync_v2(block, pinned, size, copy_stream_))
                return fail(DI_EDEAD);
        }
        if (d.cuStreamSynchronize(copy_stream_)) return fail(DI_EDEAD);
        for (int i = 0; to_host && i < count; ++i)
            std::memcpy(host[first + i], staging_.data() + size * static_cast<size_t>(i), size);
    }
    return DI_OK;
}

void Program::stats(di_stats* out) const {
    const uint32_t size = out->struct_size;
    *out = di_stats{};
    out->struct_size = size;
    for (const Weight& weight : weights_) out->weight_bytes += static_cast<int64_t>(weight.bytes());
    out->kv_bytes = blocks_touched_ * block_bytes();
    out->arena_bytes = static_cast<int64_t>(arena_.bytes());
    out->last_step_ns = last_step_ns_;
    std::copy(std::begin(op_ns_), std::end(op_ns_), out->op_ns);
}

// The rows of the slot's root, whole, so that views keep their neighbours.
int Program::slot_rows(int slot, int rows, std::vector<unsigned char>* bytes, DevicePointer* at, size_t* stride) {
    if (slot < 0 || slot >= desc_.n_slots || rows < 1 || slots_[static_cast<size_t>(slot)].dtype == DI_I8)
        return DI_EINVAL;
    const di_slot& s = slots_[static_cast<size_t>(slot)];
    const di_slot& root = s.parent < 0 ? s : slots_[static_cast<size_t>(s.parent)];
    if (rows > most_rows(s, desc_)) return DI_EINVAL;
    *stride = static_cast<size_t>(root.cols);
    *at = arena_.at() + static_cast<DevicePointer>(root.offset);
    bytes->resize(static_cast<size_t>(rows) * *stride * size_of(s.dtype));
    const Driver& d = driver();
    if (d.cuMemcpyDtoHAsync_v2(bytes->data(), *at, bytes->size(), stream_) || d.cuStreamSynchronize(stream_))
        return fail(DI_EDEAD);
    return DI_OK;
}

int Program::slot_write(int slot, int rows, const float* data) {
    std::vector<unsigned char> bytes;
    DevicePointer at;
    size_t stride;
    const ContextScope scope(driver(), device_->context);
    if (const int bad = slot_rows(slot, rows, &bytes, &at, &stride)) return bad;
    const di_slot& s = slots_[static_cast<size_t>(slot)];
    for (size_t m = 0; m < static_cast<size_t>(rows); ++m)
        for (size_t c = 0; c < static_cast<size_t>(s.cols); ++c) {
            const float x = data[m * static_cast<size_t>(s.cols) + c];
            const size_t to = m * stride + static_cast<size_t>(s.first_col) + c;
            if (s.dtype == DI_F32)
                reinterpret_cast<float*>(bytes.data())[to] = x;
            else
                reinterpret_cast<uint16_t*>(bytes.data())[to] = narrow(x);
        }
    return driver().cuMemcpyHtoDAsync_v2(at, bytes.data(), bytes.size(), stream_) ? fail(DI_EDEAD) : DI_OK;
}

int Program::slot_read(int slot, int rows, float* data) {
    std::vector<unsigned char> bytes;
    DevicePointer at;
    size_t stride;
    const ContextScope scope(driver(), device_->context);
    if (const int bad = slot_rows(slot, rows, &bytes, &at, &stride)) return bad;
    const di_slot& s = slots_[static_cast<size_t>(slot)];
    for (size_t m = 0; m < static_cast<size_t>(rows); ++m)
        for (size_t c = 0; c < static_cast<size_t>(s.cols); ++c) {
            const size_t from = m * stride + static_cast<size_t>(s.first_col) + c;
            data[m * static_cast<size_t>(s.cols) + c] =
                s.dtype == DI_F32 ? reinterpret_cast<const float*>(bytes.data())[from]
                                  : widen(reinterpret_cast<const uint16_t*>(bytes.data())[from]);
        }
    return DI_OK;
}

}  // namespace di
