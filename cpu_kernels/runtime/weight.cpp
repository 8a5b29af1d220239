#include "weight.h"

#include <cstdio>
#include <cstring>
#include <new>
#include <vector>

namespace di {

namespace {

constexpr int kMaxColumns = 1 << 24;
constexpr int kMaxGroup = 1 << 16;  // the sums of a plane of bytes stay within int32

size_t align_64(size_t x) { return (x + 63) / 64 * 64; }

size_t code_bytes(const QuantWeight& q, int n) {
    const size_t codes = static_cast<size_t>(n) * static_cast<size_t>(q.cells) * kQuantCell;
    return align_64(q.bits == DType::U4 ? codes / 2 : codes);
}

size_t scale_bytes(const QuantWeight& q, int n) {
    return align_64(static_cast<size_t>(n) * static_cast<size_t>(q.groups) * size_of(q.scale_dtype));
}

size_t zero_bytes(const QuantWeight& q, int n) {
    return align_64(static_cast<size_t>(n) * static_cast<size_t>(q.groups) * sizeof(int16_t));
}

}  // namespace

bool Weight::describe(const di_weight_desc& d, int id, char* why, size_t why_bytes) {
    desc = d;
    const auto refuse = [&](const char* reason) {
        std::snprintf(why, why_bytes, "weight %d [%d, %d]: %s", id, d.n, d.k, reason);
        return false;
    };
    if (d.n < 1 || d.k < 1 || d.k > kMaxColumns || d.n % kCell) return refuse("bad shape");
    const auto type = static_cast<DType>(d.dtype);
    if (d.kind == DI_WEIGHT_VECTOR) return d.dtype == DI_F32 ? true : refuse("vectors are fp32");
    if (is_quantized()) {
        if (d.scale_dtype > DI_BF16) return refuse("scales are fp32, fp16 or bf16");
        if (d.quant_group < 1 || d.quant_group > d.k || d.k_group != d.quant_group ||
            d.k_group_padded != round_up(d.quant_group, kQuantCell))
            return refuse("its quantization groups do not fit its columns");
        if (d.quant_group > kMaxGroup) return refuse("more than 65536 columns share a scale; quantize it by groups");
        quant.bits = type;
        quant.scale_dtype = static_cast<DType>(d.scale_dtype);
        quant.k = d.k;
        quant.group = d.quant_group;
        quant.groups = (d.k + d.quant_group - 1) / d.quant_group;
        const int64_t cells = static_cast<int64_t>(quant.groups) * quant.group_cells();
        if (cells * kQuantCell > kMaxColumns) return refuse("too many padded columns");
        quant.cells = static_cast<int32_t>(cells);
        return true;
    }
    if (d.dtype > DI_BF16) return refuse("its type is not fp32, fp16, bf16 or, for a linear weight, 8 or 4 bit");
    if (d.k_group < 1 || d.k % d.k_group || d.k_group_padded < d.k_group)
        return refuse("its columns are no whole number of groups");
    const int64_t padded = static_cast<int64_t>(d.k / d.k_group) * d.k_group_padded;
    if (padded % kCell || padded > kMaxColumns) return refuse("its padded columns are no multiple of 32");
    k_cells = static_cast<int32_t>(padded / kCell);
    return true;
}

size_t Weight::bytes() const {
    if (desc.kind == DI_WEIGHT_VECTOR) return static_cast<size_t>(desc.n) * sizeof(float);
    if (is_quantized()) return code_bytes(quant, desc.n) + scale_bytes(quant, desc.n) + zero_bytes(quant, desc.n);
    return static_cast<size_t>(desc.n) * static_cast<size_t>(k_cells) * kCell * size_of(static_cast<DType>(desc.dtype));
}

void Weight::place(uint8_t* memory) {
    data = memory;
    if (!is_quantized()) return;
    quant.codes = memory;
    quant.scales = memory + code_bytes(quant, desc.n);
    quant.zeros = reinterpret_cast<int16_t*>(memory + code_bytes(quant, desc.n) + scale_bytes(quant, desc.n));
}

int Weight::write(const KernelTable& kernels, int row0, int rows, const void* const* row_data, DType source, int id,
                  char* why, size_t why_bytes) const {
    if (desc.kind == DI_WEIGHT_VECTOR) {
        if (row0 != 0 || rows != 1 || source != DType::F32) {
            std::snprintf(why, why_bytes, "weight %d: a vector is one fp32 row", id);
            return DI_EINVAL;
        }
        std::memcpy(data, row_data[0], static_cast<size_t>(desc.n) * sizeof(float));
        return DI_OK;
    }
    if (row0 < 0 || rows < 0 || row0 % kCell || rows % kCell || row0 + rows > desc.n) {
        std::snprintf(why, why_bytes, "weight %d: rows %d to %d of %d", id, row0, row0 + rows, desc.n);
        return DI_EINVAL;
    }
    if (is_quantized()) {
        // A panel at a time: its codes stay in the cache between quantizing and packing.
        const size_t k = static_cast<size_t>(desc.k), groups = static_cast<size_t>(quant.groups);
        std::vector<uint8_t> codes(kCell * k);
        std::vector<float> scales(kCell * groups);
        std::vector<int16_t> zeros(kCell * groups);
        const uint8_t* code_rows[kCell];
        const float* scale_rows[kCell];
        const int16_t* zero_rows[kCell];
        for (int panel = 0; panel < rows; panel += kCell) {
            for (int i = 0; i < kCell; ++i) {
                const size_t row = static_cast<size_t>(i);
                code_rows[i] = row_data[panel + i] ? &codes[row * k] : nullptr;
                scale_rows[i] = &scales[row * groups];
                zero_rows[i] = &zeros[row * groups];
                if (!row_data[panel + i]) continue;
                if (!kernels.instant_quant(row_data[panel + i], source, quant, &codes[row * k], &scales[row * groups],
                                           &zeros[row * groups])) {
                    std::snprintf(why, why_bytes, "weight %d: row %d holds values that are not finite", id,
                                  row0 + panel + i);
                    return DI_EINVAL;
                }
            }
            const int at = row0 + panel;
            kernels.pack_codes(quant, code_rows - at, scale_rows - at, zero_rows - at, at / kCell, at / kCell + 1);
        }
        return DI_OK;
    }
    const auto type = static_cast<DType>(desc.dtype);
    if (desc.kind == DI_WEIGHT_LINEAR) {
        // The kernel addresses rows and panels from the weight's start.
        kernels.pack(data, type, row_data - row0, source, desc.k, desc.k_group, desc.k_group_padded, row0 / kCell,
                     (row0 + rows) / kCell);
        return DI_OK;
    }
    const size_t stride = static_cast<size_t>(k_cells) * kCell * size_of(type);
    for (int i = 0; i < rows; ++i)
        if (row_data[i])
            kernels.convert(data + static_cast<size_t>(row0 + i) * stride, type, row_data[i], source,
                            static_cast<size_t>(desc.k));
    return DI_OK;
}

int Weight::write_codes(const KernelTable& kernels, int row0, int rows, const uint8_t* const* codes,
                        const float* const* scales, const int16_t* const* zeros, int id, char* why,
                        size_t why_bytes) const {
    if (!is_quantized() || row0 < 0 || rows < 0 || row0 % kCell || rows % kCell || row0 + rows > desc.n) {
        std::snprintf(why, why_bytes, "weight %d: %s", id, is_quantized() ? "rows out of range" : "is not quantized");
        return DI_EINVAL;
    }
    kernels.pack_codes(quant, codes - row0, scales - row0, zeros - row0, row0 / kCell, (row0 + rows) / kCell);
    return DI_OK;
}

}  // namespace di
