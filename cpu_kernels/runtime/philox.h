// Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1,
// 2, 3" (SC 2011).
//
// A draw is a pure function of its key and counter: there is no state to carry, and neighbours in a batch cannot
// disturb it.
#pragma once
#include <cstdint>

namespace di {

struct PhiloxBlock {
    uint32_t x[4];
};

inline PhiloxBlock philox4x32(PhiloxBlock counter, uint32_t key0, uint32_t key1) {
    for (int round = 0; round < 10; ++round) {
        const uint64_t a = uint64_t{0xD2511F53} * counter.x[0];
        const uint64_t b = uint64_t{0xCD9E8D57} * counter.x[2];
        counter = {{static_cast<uint32_t>(b >> 32) ^ counter.x[1] ^ key0, static_cast<uint32_t>(b),
                    static_cast<uint32_t>(a >> 32) ^ counter.x[3] ^ key1, static_cast<uint32_t>(a)}};
        key0 += 0x9E3779B9;
        key1 += 0xBB67AE85;
    }
    return counter;
}

constexpr uint32_t kTokenStream = 0;  // what a draw is for; other purposes take other streams

// 64 random bits for one token. Read as u = bits / 2^64 they are uniform in [0, 1).
inline uint64_t token_bits(uint64_t seed, uint32_t sample_index, uint32_t position) {
    const PhiloxBlock counter = {{sample_index, position, 0, kTokenStream}};
    const PhiloxBlock r = philox4x32(counter, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
    return uint64_t{r.x[1]} << 32 | r.x[0];
}

}  // namespace di
