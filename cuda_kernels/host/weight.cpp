#include "weight.h"

#include <algorithm>
#include <vector>

namespace di {

namespace {

constexpr int kRowsAtOnce = 256;  // rows that are packed before they are sent

size_t aligned(size_t x) { return (x + kWeightAlign - 1) / kWeightAlign * kWeightAlign; }

}  // namespace

int Weight::describe(const di_weight_desc& d, int id, Why why) {
    desc = d;
    const auto refuse = [&](const char* reason) {
        return why.fail(DI_EUNSUPPORTED, "weight %d [%d, %d]: %s", id, d.n, d.k, reason);
    };
    if (d.n < 1 || d.k < 1 || d.k > kMaxColumns || d.n % kCell) return refuse("bad shape");
    if (d.kind == DI_WEIGHT_VECTOR) {
        k_padded = 1;
        return d.dtype == DI_F32 ? DI_OK : refuse("vectors are fp32");
    }
    if (is_quantized()) {
        if (d.scale_dtype > DI_BF16) return refuse("scales are fp32, fp16 or bf16");
        if (d.quant_group < 1 || d.quant_group > d.k || d.k_group != d.quant_group ||
            d.k_group_padded != round_up(d.quant_group, kQuantCell))
            return refuse("its quantization groups do not fit its columns");
        if (d.quant_group > kMaxGroup) return refuse("more than 65536 columns share a scale; quantize it by groups");
        shape = {d.k,
                 d.quant_group,
                 (d.k + d.quant_group - 1) / d.quant_group,
                 d.k_group_padded,
                 d.dtype == DI_U8 ? 8 : 4,
                 d.scale_dtype};
        if (int64_t{shape.groups} * shape.group_padded > kMaxColumns) return refuse("too many padded columns");
        k_padded = shape.k_padded();
        return DI_OK;
    }
    if (d.dtype > DI_BF16) return refuse("its type is not fp32, fp16, bf16 or, for a linear weight, 8 or 4 bit");
    if (d.k_group < 1 || d.k % d.k_group || d.k_group_padded < d.k_group)
        return refuse("its columns are no whole number of groups");
    const int64_t padded = int64_t{d.k / d.k_group} * d.k_group_padded;
    if (padded % kCell || padded > kMaxColumns) return refuse("its padded columns are no multiple of 32");
    k_padded = static_cast<int>(padded);
    return DI_OK;
}

size_t Weight::bytes() const {
    const auto n = static_cast<size_t>(desc.n);
    if (!is_quantized()) return n * static_cast<size_t>(k_padded) * size_of(desc.dtype);
    const size_t grid = n * static_cast<size_t>(shape.groups);
    return aligned(shape.code_bytes(desc.n)) + aligned(grid * size_of(desc.scale_dtype)) + grid * sizeof(int16_t);
}

void Weight::place(DevicePointer memory) {
    data = memory;
    if (!is_quantized()) return;
    scales = data + aligned(shape.code_bytes(desc.n));
    zeros =
        scales + aligned(static_cast<size_t>(desc.n) * static_cast<size_t>(shape.groups) * size_of(desc.scale_dtype));
}

Codes Weight::codes() const {
    return {reinterpret_cast<const void*>(data),
            reinterpret_cast<const void*>(scales),
            reinterpret_cast<const int16_t*>(zeros),
            desc.scale_dtype,
            shape.bits,
            desc.n,
            shape.groups,
            shape.group,
            shape.group_padded};
}

int Weight::check_rows(int row0, int rows, int id, Why why) const {
    if (row0 >= 0 && rows >= 0 && row0 % kCell == 0 && rows % kCell == 0 && rows <= desc.n && row0 <= desc.n - rows)
        return DI_OK;
    return why.fail(DI_EINVAL, "weight %d: rows %d to %lld of %d", id, row0, static_cast<long long>(row0) + rows,
                    desc.n);
}

int Weight::write(const Driver& driver, void* stream, int row0, int rows, const void* const* row_data, int source,
                  int id, Why why) const {
    if (source > DI_BF16) return why.fail(DI_EINVAL, "weight %d: rows are fp32, fp16 or bf16", id);
    if (desc.kind == DI_WEIGHT_VECTOR) {
        if (row0 != 0 || rows != 1 || source != DI_F32 || !row_data[0])
            return why.fail(DI_EINVAL, "weight %d: a vector is one fp32 row", id);
        const size_t size = static_cast<size_t>(desc.n) * sizeof(float);
        return driver.check(driver.cuMemcpyHtoDAsync_v2(data, row_data[0], size, stream), why, "uploading a weight");
    }
    if (const int bad = check_rows(row0, rows, id, why)) return bad;
    if (is_quantized()) {
        const auto k = static_cast<size_t>(desc.k), groups = static_cast<size_t>(shape.groups);
        std::vector<uint8_t> codes(kRowsAtOnce * k);
        std::vector<float> grid_scales(kRowsAtOnce * groups);
        std::vector<int16_t> grid_zeros(kRowsAtOnce * groups);
        const uint8_t* code_rows[kRowsAtOnce];
        const float* scale_rows[kRowsAtOnce];
        const int16_t* zero_rows[kRowsAtOnce];
        for (int first = 0; first < rows; first += kRowsAtOnce) {
            const int count = std::min(kRowsAtOnce, rows - first);
            for (int i = 0; i < count; ++i) {
                const auto at = static_cast<size_t>(i);
                code_rows[i] = row_data[first + i] ? &codes[at * k] : nullptr;
                scale_rows[i] = &grid_scales[at * groups];
                zero_rows[i] = &grid_zeros[at * groups];
                if (row_data[first + i] && !instant_quant(row_data[first + i], source, shape, &codes[at * k],
                                                          &grid_scales[at * groups], &grid_zeros[at * groups]))
                    return why.fail(DI_EINVAL, "weight %d: row %d holds values that are not finite", id,
                                    row0 + first + i);
            }
            if (const int bad =
                    write_codes(driver, stream, row0 + first, count, code_rows, scale_rows, zero_rows, id, why))
                return bad;
        }
        return DI_OK;
    }
    const size_t stride = static_cast<size_t>(k_padded) * size_of(desc.dtype);
    std::vector<unsigned char> packed(stride * static_cast<size_t>(std::min(rows, kRowsAtOnce)));
    for (int first = 0; first < rows; first += kRowsAtOnce) {
        const int count = std::min(kRowsAtOnce, rows - first);
        for (int i = 0; i < count; ++i)
            if (desc.dtype == DI_F16 && row_data[first + i] && !fits_f16(row_data[first + i], source, desc.k))
                return why.fail(
                    DI_EINVAL,
                    "weight %d: row %d holds values beyond 65504, which fp16 does not have; use bf16 or fp32", id,
                    row0 + first + i);
        for (int i = 0; i < count; ++i)
            pack_row(row_data[first + i], source, desc.k, desc.k_group, desc.k_group_padded,
                     packed.data() + stride * static_cast<size_t>(i), desc.dtype);
        const DevicePointer to = data + stride * static_cast<size_t>(row0 + first);
        const size_t size = stride * static_cast<size_t>(count);
        if (const int bad =
                driver.check(driver.cuMemcpyHtoDAsync_v2(to, packed.data(), size, stream), why, "uploading a weight"))
            return bad;
    }
    return DI_OK;
}

int Weight::write_codes(const Driver& driver, void* stream, int row0, int rows, const uint8_t* const* codes,
                        const float* const* row_scales, const int16_t* const* row_zeros, int id, Why why) const {
    if (!is_quantized()) return why.fail(DI_EINVAL, "weight %d: is not quantized", id);
    if (const int bad = check_rows(row0, rows, id, why)) return bad;
    if (rows == 0) return DI_OK;
    const size_t scale_size = size_of(desc.scale_dtype),
                 grid = static_cast<size_t>(rows) * static_cast<size_t>(shape.groups);
    std::vector<uint8_t> packed(shape.code_bytes(rows));
    std::vector<unsigned char> packed_scales(grid * scale_size);
    std::vector<int16_t> packed_zeros(grid);
    pack_codes(shape, rows, codes, packed.data());
    pack_grid(shape, rows, codes, row_scales, row_zeros, packed_scales.data(), packed_zeros.data());
    if (const int bad = driver.check(
            driver.cuMemcpyHtoDAsync_v2(data + shape.code_bytes(row0), packed.data(), packed.size(), stream), why,
            "uploading codes"))
        return bad;
    const auto upload = [&](DevicePointer to, const void* from, size_t element) {
        Copy2D copy{};
        copy.source_kind = kHostMemory;
        copy.source_host = from;
        copy.source_pitch = copy.width = static_cast<size_t>(rows) * element;
        copy.target_kind = kDeviceMemory;
        copy.target_device = to + static_cast<size_t>(row0) * element;
        copy.target_pitch = static_cast<size_t>(desc.n) * element;
        copy.height = static_cast<size_t>(shape.groups);
        return driver.check(driver.cuMemcpy2DAsync_v2(&copy, stream), why, "uploading scales");
    };
    if (const int bad = upload(scales, packed_scales.data(), scale_size)) return bad;
    return upload(zeros, packed_zeros.data(), sizeof(int16_t));
}

}  // namespace di
