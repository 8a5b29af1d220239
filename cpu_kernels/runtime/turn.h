// Turn taking between the thread teams of one process: two engines must not run at once where their teams together
// need more cores than there are, since teams that spin on each other's cores are many times slower than in turn.
#pragma once

#include <cstdint>

namespace di {

// Holds `threads` of the process's usable cores for its lifetime; waits asleep, first come first served, until they are
// free. A team larger than the machine waits until it is alone. Held around one whole program run, never nested.
class TurnGuard {
  public:
    explicit TurnGuard(int threads);
    ~TurnGuard();
    TurnGuard(const TurnGuard&) = delete;
    TurnGuard& operator=(const TurnGuard&) = delete;

  private:
    uint32_t threads_;
    uint32_t generation_;  // a forked child has given up its parent's turns
};

}  // namespace di
