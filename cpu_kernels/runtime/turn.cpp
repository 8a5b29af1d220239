#include "turn.h"

#include <atomic>

#include "barrier.h"
#include "os.h"

namespace di {
namespace {

constexpr uint64_t kAsleep = 0;  // a turn lasts milliseconds: no spinning

struct {
    std::atomic<uint32_t> next_ticket{0};
    Gate serving;  // the ticket at the head of the queue
    Gate busy;     // cores held; raised only by the head of the queue
} turns;

// The child has no other thread: nobody holds a turn or waits for one.
void forget_turns() {
    turns.next_ticket.store(0, std::memory_order_relaxed);
    turns.serving.forget();
    turns.busy.forget();
}

uint32_t capacity() {
    static const bool registered = os_at_fork(forget_turns);
    (void)registered;
    static std::atomic<uint32_t> cpus{0};  // no initialization guard, which a fork could leave locked in the child
    if (cpus.load(std::memory_order_relaxed) == 0) {
        cpus.store(static_cast<uint32_t>(os_usable_cpus()), std::memory_order_relaxed);
    }
    return cpus.load(std::memory_order_relaxed);
}

}  // namespace

TurnGuard::TurnGuard(int threads) : threads_(static_cast<uint32_t>(threads)), generation_(os_fork_generation()) {
    const uint32_t cpus = capacity(), ticket = turns.next_ticket.fetch_add(1, std::memory_order_relaxed);
    for (uint32_t head = turns.serving.value(); head != ticket;) head = turns.serving.wait(head, kAsleep);
    for (uint32_t busy = turns.busy.value(); busy != 0 && busy + threads_ > cpus;) {
        busy = turns.busy.wait(busy, kAsleep);
    }
    turns.busy.add(threads_);
    turns.serving.open(ticket + 1);
}

TurnGuard::~TurnGuard() {
    if (generation_ == os_fork_generation()) turns.busy.add(0u - threads_);
}

}  // namespace di
