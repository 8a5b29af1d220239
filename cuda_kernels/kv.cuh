// Where keys and values lie in the cache; see KvPool.
#pragma once
#include "view.cuh"

namespace di {

constexpr int kMaxHead = 256;

__device__ __forceinline__ bool is_codes(const KvPool& kv) { return kv.dtype == U8 || kv.dtype == U4; }

__device__ __forceinline__ int64_t kv_row_bytes(const KvPool& kv) {
    return kv.dtype == F32  ? 4 * kv.head_size
           : kv.dtype == U8 ? kv.head_size
           : kv.dtype == U4 ? kv.head_size / 2
                            : 2 * kv.head_size;
}

// The columns of one token, which = 0 for K and 1 for V.
__device__ __forceinline__ uint8_t* kv_row(const KvPool& kv, int layer, int block, int which, int head, int token) {
    const int64_t row = (static_cast<int64_t>(which) * kv.heads + head) * kv.block_tokens + token;
    return kv.data + block * kv.block_bytes + layer * kv.layer_bytes + row * kv_row_bytes(kv);
}

// Scale and zero point of one token's codes.
__device__ __forceinline__ float2* kv_grid(const KvPool& kv, int layer, int block, int which, int head, int token) {
    const int64_t rows = 2LL * kv.heads * kv.block_tokens;
    const int64_t row = (static_cast<int64_t>(which) * kv.heads + head) * kv.block_tokens + token;
    uint8_t* grids = kv.data + block * kv.block_bytes + layer * kv.layer_bytes + rows * kv_row_bytes(kv);
    return reinterpret_cast<float2*>(grids) + row;
}

}  // namespace di
