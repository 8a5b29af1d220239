// Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1,
// 2, 3" (SC 2011).
#pragma once
#include "device.cuh"

namespace di {

// 64 random bits of one token: words 1 and 0 of the block with key `seed` and counter (sample index, position, 0, 0).
__device__ __forceinline__ uint64_t token_bits(uint64_t seed, uint32_t sample_index, uint32_t position) {
    uint32_t c[4] = {sample_index, position, 0, 0};
    uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const uint64_t a = static_cast<uint64_t>(0xD2511F53u) * c[0], b = static_cast<uint64_t>(0xCD9E8D57u) * c[2];
        c[0] = static_cast<uint32_t>(b >> 32) ^ c[1] ^ key0;
        c[1] = static_cast<uint32_t>(b);
        c[2] = static_cast<uint32_t>(a >> 32) ^ c[3] ^ key1;
        c[3] = static_cast<uint32_t>(a);
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return static_cast<uint64_t>(c[1]) << 32 | c[0];
}

}  // namespace di
