// What a thread has to do of one instruction, and how others help it: the thread takes from the front of its share,
// half of what is left at a time; who has done its own share takes from the back. So a thread whose core is slow, or
// was taken away for a moment, holds nobody up, and on quiet cores every thread still works on one stretch of memory.
#pragma once

#include <atomic>
#include <cstdint>

namespace di {

struct Range {
    int begin, end;
};

// Part i of n things in even parts.
inline Range share(int n, int part, int parts) {
    return {static_cast<int>(static_cast<int64_t>(n) * part / parts),
            static_cast<int>(static_cast<int64_t>(n) * (part + 1) / parts)};
}

enum class End { Front, Back };

class alignas(64) Hand {
  public:
    static constexpr uint64_t kRounds = uint64_t{1} << 24;
    static constexpr int kMost = (1 << 20) - 1;  // things of a share

    // Takes a stretch [begin, end) of a share of so many things, at least `least` of them if there are; false: nothing
    // is left. What was taken in another round does not count, so that hands need no clearing between steps.
    bool take(uint64_t round, int things, int least, End end, Range* stretch) {
        uint64_t seen = taken_.load(std::memory_order_relaxed);
        for (;;) {
            const bool current = seen >> 40 == round % kRounds;
            const int front = current ? static_cast<int>(seen >> 20 & kMost) : 0;
            const int back = current ? static_cast<int>(seen & kMost) : 0, left = things - front - back;
            if (left <= 0) return false;
            const int half = left / 2 < least ? least : left / 2, n = half < 1 ? 1 : half > left ? left : half;
            const int begin = end == End::Front ? front : things - back - n;
            const uint64_t next = round % kRounds << 40 |
                                  static_cast<uint64_t>(end == End::Front ? front + n : front) << 20 |
                                  static_cast<uint64_t>(end == End::Back ? back + n : back);
            if (!taken_.compare_exchange_weak(seen, next, std::memory_order_relaxed)) continue;
            *stretch = {begin, begin + n};
            return true;
        }
    }
    void clear() { taken_.store(0, std::memory_order_relaxed); }

  private:
    std::atomic<uint64_t> taken_{0};  // round, things from the front, things from the back
};

}  // namespace di
