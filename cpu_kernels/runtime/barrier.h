// Waiting for other threads: a gate that opens, and a barrier made of gates. Waiters first spin, since what they wait
// for is mostly microseconds away, then sleep, since it may need this very core. They never yield: sched_yield gives a
// whole time slice to any busy process. With one such process on each core, a barrier of 8 threads on 2 cores took
// 2.5 ms with yields and 0.15 ms without; on quiet cores it made no difference.
#pragma once

#include <atomic>
#include <cstdint>

namespace di {

// How long one thread spins: as long as it pays. Each wait that ends asleep halves the next one's spin, since whoever
// is waited for probably shares this core; one that ends awake restores it, and every 16th tries in full.
class Spinner {
  public:
    explicit Spinner(uint64_t full_ns = 0) : full_ns_(full_ns) {}

    uint64_t budget_ns() const { return misses_ % 16 == 0 ? full_ns_ : full_ns_ >> (misses_ < 6 ? misses_ : 6); }
    void learn(bool paid) { misses_ = paid ? 0 : misses_ + 1; }

  private:
    uint64_t full_ns_;
    uint32_t misses_ = 0;
};

// A number that threads wait on until it changes. Each waiter names the value it has seen; no change is ever missed.
class alignas(64) Gate {
  public:
    uint32_t value() const { return value_.load(std::memory_order_acquire); }
    int sleepers() const { return static_cast<int>(sleepers_.load(std::memory_order_relaxed)); }

    // Waits until the value is no longer `seen`, spins for about `spin_ns` and then sleeps; returns the new value.
    uint32_t wait(uint32_t seen, uint64_t spin_ns);
    uint32_t wait(uint32_t seen, Spinner* spinner);

    void open(uint32_t value);  // sets the value and wakes the sleepers
    void add(uint32_t delta);   // the same by addition, for values with several writers
    void forget();              // back to 0 with no sleepers: only in a forked child

  private:
    bool spin(uint32_t seen, uint64_t spin_ns) const;
    void sleep(uint32_t seen);
    void wake();

    std::atomic<uint32_t> value_{0};
    std::atomic<uint32_t> sleepers_{0};
};

// Lets `threads` threads pass together, any number of times. Up to 16 threads count on one word; above, leaves of 8
// count for themselves and send their last arrival to the root, so that few threads write to any one cache line.
class Barrier {
  public:
    Barrier() = default;
    ~Barrier();
    Barrier(const Barrier&) = delete;
    Barrier& operator=(const Barrier&) = delete;

    bool create(int threads);  // once, before use; false: no memory
    void wait(int thread, Spinner* spinner);

  private:
    struct Node {
        alignas(64) std::atomic<uint32_t> arrived{0};
        uint32_t members = 0;
        Gate gate;  // holds the number of passages

        bool arrive();  // true for the last of the members, who then calls release()
        void release();
    };

    Node root_;
    Node* leaves_ = nullptr;  // none up to 16 threads
};

}  // namespace di
