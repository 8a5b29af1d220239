#include "team.h"

#include <cstdio>
#include <new>

#include "fp_mode.h"
#include "os.h"

namespace di {
namespace {

// Inside a run peers arrive within microseconds unless another process has taken the core of one; a sleep and its
// wake-up together cost about as much as this wait.
constexpr uint64_t kSpinInRun = 70'000;

// Between two decode steps the host needs up to 0.3 ms: workers await the next run a little longer before they park.
constexpr uint64_t kSpinBetweenRuns = 500'000;

// With more threads than cores, whoever is waited for may need this core.
constexpr uint64_t kSpinCrowded = 1'000;

void say(char* why, size_t size, const char* text) {
    if (why != nullptr && size > 0) snprintf(why, size, "%s", text);
}

}  // namespace

struct alignas(64) Team::Worker {
    Team* team = nullptr;
    int index = 0;
    Thread thread;
    Spinner spinner;
};

Team* Team::create(int threads, char* why, size_t why_size) {
    char text[160];
    if (threads < 1 || threads > kMaxThreads) {
        snprintf(text, sizeof text, "a thread team has 1 to %d threads, not %d", kMaxThreads, threads);
        say(why, why_size, text);
        return nullptr;
    }
    Team* team = new (std::nothrow) Team(threads);
    if (team != nullptr) team->workers_ = new (std::nothrow) Worker[static_cast<size_t>(threads)];
    if (team == nullptr || team->workers_ == nullptr || !team->barrier_.create(threads)) {
        say(why, why_size, "no memory for a thread team");
        delete team;
        return nullptr;
    }
    for (int i = 0; i < threads; i++) {
        team->workers_[i].team = team;
        team->workers_[i].index = i;
        team->workers_[i].spinner = Spinner(team->crowded_ ? kSpinCrowded : kSpinInRun);
    }
    for (int i = 1; i < threads; i++) {
        Worker& worker = team->workers_[i];
        if (const int error = os_thread_start(&worker.thread, worker_main, &worker)) {
            snprintf(text, sizeof text,
                     "thread %d of %d could not be started (error %d): use fewer threads or raise the limit on them", i,
                     threads, error);
            say(why, why_size, text);
            delete team;
            return nullptr;
        }
        team->started_ = i;
    }
    return team;
}

Team::Team(int threads) : threads_(threads), generation_(os_fork_generation()), crowded_(threads > os_usable_cpus()) {}

Team::~Team() {
    if (generation_ == os_fork_generation() && started_ > 0) {
        fn_ = nullptr;
        start_.open(start_.value() + 1);
        for (int i = 1; i <= started_; i++) os_thread_join(workers_[i].thread);
    }
    delete[] workers_;
}

bool Team::run(TeamFn fn, void* ctx, char* why, size_t why_size) {
    if (generation_ != os_fork_generation()) {
        say(why, why_size, "the thread team stayed in the parent process: create a new one after fork()");
        return false;
    }
    if (running_.exchange(true, std::memory_order_acquire)) {
        say(why, why_size, "the thread team is already running: one run at a time");
        return false;
    }
    const KernelFpMode mode;
    if (threads_ > 1) {
        fn_ = fn;
        ctx_ = ctx;
        const uint32_t runs = start_.value();
        unfinished_.store(threads_ - 1, std::memory_order_relaxed);
        start_.open(runs + 1);
        fn(ctx, 0, threads_);
        done_.wait(runs, &workers_[0].spinner);
    } else {
        fn(ctx, 0, 1);
    }
    running_.store(false, std::memory_order_release);
    return true;
}

void Team::barrier(int thread) {
    if (threads_ > 1) barrier_.wait(thread, &workers_[thread].spinner);
}

void* Team::worker_main(void* worker) {
    const Worker* self = static_cast<const Worker*>(worker);
    self->team->work(self->index);
    return nullptr;
}

void Team::work(int thread) {
    char name[16];
    snprintf(name, sizeof name, "dashinfer-w%d", thread);
    os_name_thread(name);
    set_fp_mode(kKernelFpMode);
    for (uint32_t run = 0;;) {
        run = start_.wait(run, crowded_ ? kSpinCrowded : kSpinBetweenRuns);
        if (fn_ == nullptr) return;
        fn_(ctx_, thread, threads_);
        if (unfinished_.fetch_sub(1, std::memory_order_acq_rel) == 1) done_.open(run);
    }
}

}  // namespace di
