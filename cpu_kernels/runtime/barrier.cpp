#include "barrier.h"

#include <climits>
#include <new>

#include "os.h"

namespace di {
namespace {

constexpr int kOneLevel = 16;  // threads that still share one counter
constexpr int kLeaf = 8;
constexpr int kPausesPerLook = 32;  // at the clock: about a microsecond

void cpu_pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("isb" ::: "memory");  // `yield` is a no-op on most cores; this takes some tens of cycles
#endif
}

}  // namespace

uint32_t Gate::wait(uint32_t seen, uint64_t spin_ns) {
    if (!spin(seen, spin_ns)) sleep(seen);
    return value();
}

uint32_t Gate::wait(uint32_t seen, Spinner* spinner) {
    const bool paid = spin(seen, spinner->budget_ns());
    if (!paid) sleep(seen);
    spinner->learn(paid);
    return value();
}

bool Gate::spin(uint32_t seen, uint64_t spin_ns) const {
    if (value() != seen) return true;
    for (uint64_t end = 0; spin_ns > 0;) {
        for (int i = 0; i < kPausesPerLook; i++) {
            cpu_pause();
            if (value() != seen) return true;
        }
        const uint64_t time = os_now_ns();
        if (end == 0) end = time + spin_ns;
        if (time >= end) break;
    }
    return false;
}

// A sleeper announces itself before it looks at the value a last time; who opens changes the value before looking for
// sleepers. In the single order of sequentially consistent operations one of the two sees the other.
void Gate::sleep(uint32_t seen) {
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    while (value_.load(std::memory_order_seq_cst) == seen) os_futex_wait(&value_, seen);
    sleepers_.fetch_sub(1, std::memory_order_relaxed);
}

void Gate::open(uint32_t value) {
    value_.store(value, std::memory_order_seq_cst);
    wake();
}

void Gate::add(uint32_t delta) {
    value_.fetch_add(delta, std::memory_order_seq_cst);
    wake();
}

void Gate::forget() {
    value_.store(0, std::memory_order_relaxed);
    sleepers_.store(0, std::memory_order_relaxed);
}

void Gate::wake() {
    if (sleepers_.load(std::memory_order_seq_cst) != 0) os_futex_wake(&value_, INT_MAX);
}

bool Barrier::create(int threads) {
    if (threads <= kOneLevel) {
        root_.members = static_cast<uint32_t>(threads);
        return true;
    }
    const int leaves = (threads + kLeaf - 1) / kLeaf;
    leaves_ = new (std::nothrow) Node[static_cast<size_t>(leaves)];
    if (leaves_ == nullptr) return false;
    for (int i = 0; i < leaves; i++) {
        const int left = threads - i * kLeaf;
        leaves_[i].members = static_cast<uint32_t>(left < kLeaf ? left : kLeaf);
    }
    root_.members = static_cast<uint32_t>(leaves);
    return true;
}

Barrier::~Barrier() { delete[] leaves_; }

void Barrier::wait(int thread, Spinner* spinner) {
    // A node's number of passages cannot change between a member's reading it and that member's arrival.
    Node* leaf = leaves_ != nullptr ? &leaves_[thread / kLeaf] : nullptr;
    if (leaf != nullptr) {
        const uint32_t passages = leaf->gate.value();
        if (!leaf->arrive()) {
            leaf->gate.wait(passages, spinner);
            return;
        }
    }
    const uint32_t passages = root_.gate.value();
    if (root_.arrive()) {
        root_.release();
    } else {
        root_.gate.wait(passages, spinner);
    }
    if (leaf != nullptr) leaf->release();
}

bool Barrier::Node::arrive() {
    if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 < members) return false;
    arrived.store(0, std::memory_order_relaxed);  // published by the release of the gate
    return true;
}

void Barrier::Node::release() { gate.open(gate.value() + 1); }

}  // namespace di
