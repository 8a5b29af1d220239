// The thread team: persistent workers that run one function together. Between runs they stay awake for a moment, so
// that the next decode step finds them hot, then sleep and cost nothing. No OpenMP, no thread before create().
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "barrier.h"
#include "turn.h"

namespace di {

constexpr int kMaxThreads = 1024;

// What a team runs: called once on each of its threads, 0 <= thread < threads, in the kernels' floating-point mode.
using TeamFn = void (*)(void* ctx, int thread, int threads);

class Team {
  public:
    // Starts threads - 1 workers; the thread that calls run() is the team's thread 0. Null on failure, with the reason
    // in `why`. Ended by `delete`, which joins the workers; a forked child may delete its parent's team as well.
    static Team* create(int threads, char* why, size_t why_size);
    ~Team();
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    // Runs fn on all threads and returns when all are done. One run at a time, from any thread of the creating process:
    // otherwise nothing is run and the answer is false, with the reason in `why`.
    bool run(TeamFn fn, void* ctx, char* why = nullptr, size_t why_size = 0);

    // Inside fn: returns when every thread of the team has called it, after which all see what each wrote before.
    void barrier(int thread);

    int threads() const { return threads_; }
    int parked() const { return start_.sleepers(); }  // workers asleep between runs

  private:
    struct Worker;

    explicit Team(int threads);
    void work(int thread);
    static void* worker_main(void* worker);

    const int threads_;
    const uint32_t generation_;  // of the process that owns the workers
    const bool crowded_;         // more threads than cores
    Worker* workers_ = nullptr;  // by thread; 0 is the caller of run()
    int started_ = 0;            // threads 1 .. started_ exist

    TeamFn fn_ = nullptr;  // the current run; null ends the workers
    void* ctx_ = nullptr;
    std::atomic<bool> running_{false};

    Gate start_;  // the number of runs begun
    Gate done_;   // and ended
    alignas(64) std::atomic<int> unfinished_{0};
    Barrier barrier_;
};

// Hands out work in chunks to whichever thread asks next.
struct alignas(64) Counter {
    std::atomic<int64_t> next{0};

    // The first index of a chunk of n; the caller stops at its end of the work.
    int64_t take(int64_t n = 1) { return next.fetch_add(n, std::memory_order_relaxed); }
    void reset() { next.store(0, std::memory_order_relaxed); }
};

}  // namespace di
