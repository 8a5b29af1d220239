// A packed weight: what it may be, how many bytes it takes, and how rows get into it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../../dashinfer_lite/include/dashinfer_device.h"
#include "../kernels.h"

namespace di {

struct Weight {
    di_weight_desc desc{};
    uint8_t* data = nullptr;
    int32_t k_cells = 0;  // cells of 32 over the padded K; tables: cells of a row
    QuantWeight quant{};  // where its parts lie, for quantized weights

    bool is_quantized() const {
        return desc.kind == DI_WEIGHT_LINEAR && di::is_quantized(static_cast<DType>(desc.dtype));
    }

    // Takes a description; false, with the reason in `why`, where this device cannot keep such a weight.
    bool describe(const di_weight_desc& d, int id, char* why, size_t why_bytes);
    size_t bytes() const;
    void place(uint8_t* memory);

    // Rows [row0, row0 + rows) in padded order; see weight_write and weight_write_codes of the device header. Different
    // ranges may be written by different threads.
    int write(const KernelTable& kernels, int row0, int rows, const void* const* row_data, DType source, int id,
              char* why, size_t why_bytes) const;
    int write_codes(const KernelTable& kernels, int row0, int rows, const uint8_t* const* codes,
                    const float* const* scales, const int16_t* const* zeros, int id, char* why, size_t why_bytes) const;
};

}  // namespace di
