// One weight of a program: its description, where it lies on the GPU, and how rows get there.
#pragma once
#include "driver.h"
#include "pack.h"

namespace di {

constexpr int kCell = 32;       // columns and rows are padded to this
constexpr int kQuantCell = 64;  // and the groups of quantized columns to this
constexpr int kMaxColumns = 1 << 24;
constexpr int kMaxGroup = 1 << 16;  // the sums of a plane of bytes stay within int32
constexpr size_t kWeightAlign = 256;

class Weight {
  public:
    di_weight_desc desc{};
    CodeShape shape{};         // of a quantized weight
    int k_padded = 0;          // elements of a row on the GPU; 1 for vectors
    DevicePointer data = 0;    // rows, or codes
    DevicePointer scales = 0;  // of a quantized weight: [groups][n]
    DevicePointer zeros = 0;

    bool is_quantized() const { return desc.kind == DI_WEIGHT_LINEAR && (desc.dtype == DI_U8 || desc.dtype == DI_U4); }

    // Takes a description, or refuses it with a reason; `id` names the weight there.
    int describe(const di_weight_desc& d, int id, Why why);
    size_t bytes() const;
    void place(DevicePointer memory);
    Codes codes() const;  // as kernels are told

    // Rows [row0, row0 + rows) as dashinfer_device.h says, put on `stream`; sources may change once the call returns.
    int write(const Driver& driver, void* stream, int row0, int rows, const void* const* row_data, int source, int id,
              Why why) const;
    int write_codes(const Driver& driver, void* stream, int row0, int rows, const uint8_t* const* codes,
                    const float* const* scales, const int16_t* const* zeros, int id, Why why) const;

  private:
    int check_rows(int row0, int rows, int id, Why why) const;
};

}  // namespace di
