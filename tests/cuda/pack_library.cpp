// The host library's packers behind C names, for NumPy.
#include "../../cuda_kernels/host/pack.cpp"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

di::CodeShape shape_of(const int* s) { return {s[0], s[1], s[2], s[3], s[4], s[5]}; }

}  // namespace

EXPORT void pack_row(const void* source, int source_dtype, int k, int group, int padded, void* target,
                     int target_dtype) {
    di::pack_row(source, source_dtype, k, group, padded, target, target_dtype);
}
EXPORT int instant_quant(const void* row, int dtype, const int* shape, uint8_t* codes, float* scales, int16_t* zeros) {
    return di::instant_quant(row, dtype, shape_of(shape), codes, scales, zeros);
}
EXPORT void pack_codes(const int* shape, int rows, const uint8_t* const* codes, uint8_t* target) {
    di::pack_codes(shape_of(shape), rows, codes, target);
}
EXPORT void pack_grid(const int* shape, int rows, const uint8_t* const* codes, const float* const* scales,
                      const int16_t* const* zeros, void* target_scales, int16_t* target_zeros) {
    di::pack_grid(shape_of(shape), rows, codes, scales, zeros, target_scales, target_zeros);
}
