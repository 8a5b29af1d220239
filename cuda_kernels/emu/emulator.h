// CUDA's execution model on one CPU thread: a block at a time, a fiber for each of its threads.
//
// What hides on a GPU shows here: threads run in a random order, shared memory begins as NaN and ends at a page that
// nobody may touch, asynchronous copies arrive only when they are waited for, and a barrier that not all threads reach
// ends the process with a sentence.
#pragma once
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "fiber.h"
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace emu {

struct Dim3 {
    unsigned x = 1, y = 1, z = 1;
};

enum class State : uint8_t { ready, at_block_barrier, at_warp_barrier, done };

constexpr int kLanes = 32;
constexpr size_t kMaxExchange = 96;  // bytes a lane may hand over in one warp operation
constexpr size_t kStaticShared = size_t{48} << 10;
constexpr unsigned char kPoison = 0xFF;

struct AsyncCopy {
    void* to;
    const void* from;
    int bytes;
    bool zero;
};

struct Fiber {
    Place place;
    GuardedMemory stack;
    Dim3 thread;
    int index = 0;
    State state = State::ready;
    size_t static_shared = 0;  // bytes of SHARED arrays that this thread has passed
    std::vector<AsyncCopy> open_copies;
    std::deque<std::vector<AsyncCopy>> copy_groups;
};

struct Warp {
    alignas(16) unsigned char in[kLanes * kMaxExchange];  // as many bytes a lane as the operation at hand has
    alignas(16) unsigned char out[kLanes * kMaxExchange];
    int arrived = 0;
    const void* operation = nullptr;
};

class Machine {
  public:
    Fiber* current = nullptr;
    Dim3 block, grid_dim, block_dim;

    template <class F>
    void launch(const char* name, Dim3 grid, Dim3 threads, size_t shared_bytes, F& body) {
        name_ = name;
        grid_dim = grid;
        block_dim = threads;
        const size_t count = size_t{threads.x} * threads.y * threads.z;
        if (count == 0 || count > 1024 || count % kLanes) die("a block is 32 to 1024 threads, in whole warps");
        prepare_block(static_cast<int>(count), shared_bytes);
        body_ = [](void* f) { (*static_cast<F*>(f))(); };
        argument_ = &body;
#if defined(__SSE__)
        const unsigned mode = _mm_getcsr();
        _mm_setcsr(mode | 0x8040);  // denormals are zero, as the kernels are compiled
#endif
        for (block.z = 0; block.z < grid.z; ++block.z)
            for (block.y = 0; block.y < grid.y; ++block.y)
                for (block.x = 0; block.x < grid.x; ++block.x) run_block();
#if defined(__SSE__)
        _mm_setcsr(mode);
#endif
    }

    void block_barrier() {
        if (++at_barrier_ == count_) {
            at_barrier_ = 0;
            for (int i = 0; i < count_; ++i)
                if (fibers_[i]->state == State::at_block_barrier) wake(i);
        } else {
            sleep(State::at_block_barrier);
        }
    }

    // Every thread of the block gives a number; all get their sum.
    int block_sum(int value) {
        block_total_ += value;
        block_barrier();
        const int total = block_total_;
        block_barrier();
        block_total_ = 0;
        block_barrier();
        return total;
    }

    // All 32 lanes hand in a value; whoever comes last computes what each of them gets back. `operation` tells
    // operations apart: lanes that meet must have come for the same one.
    template <class In, class Out, class F>
    Out exchange(const void* operation, const In& in, F&& last) {
        static_assert(sizeof(In) <= kMaxExchange && sizeof(Out) <= kMaxExchange);
        static_assert(std::is_trivially_copyable_v<In> && std::is_trivially_copyable_v<Out>);
        Warp& warp = *warps_[current->index / kLanes];
        const int lane = current->index % kLanes;
        if (warp.arrived == 0) warp.operation = operation;
        if (warp.operation != operation) die("the lanes of a warp diverge: they meet in different operations");
        std::memcpy(warp.in + lane * sizeof(In), &in, sizeof in);
        if (++warp.arrived == kLanes) {
            warp.arrived = 0;
            last(reinterpret_cast<const In*>(warp.in), reinterpret_cast<Out*>(warp.out));
            const int first = current->index - lane;
            for (int i = first; i < first + kLanes; ++i)
                if (fibers_[i]->state == State::at_warp_barrier) wake(i);
        } else {
            sleep(State::at_warp_barrier);
        }
        Out out;
        std::memcpy(&out, warp.out + lane * sizeof(Out), sizeof out);
        return out;
    }

    // The next array of static shared memory. All threads pass the same declarations in the same order.
    void* static_shared(size_t bytes) {
        const size_t at = current->static_shared;
        current->static_shared += (bytes + 15) / 16 * 16;
        if (current->static_shared > kStaticShared) die("more than 48 KiB of static shared memory");
        return static_.begin() + at;
    }
    void* dynamic_shared() const { return dynamic_.end() - dynamic_bytes_; }

    [[noreturn]] void die(const char* what) const {
        std::fprintf(stderr, "emulator: %s; kernel %s, block (%u, %u, %u)\n", what, name_, block.x, block.y, block.z);
        std::abort();
    }

  private:
    void prepare_block(int count, size_t shared_bytes) {
        count_ = count;
        while (static_cast<int>(fibers_.size()) < count) {
            fibers_.push_back(std::make_unique<Fiber>());
            fibers_.back()->stack.reserve(kStackBytes);
            if (fibers_.size() % kLanes == 1) warps_.push_back(std::make_unique<Warp>());
        }
        for (int i = 0; i < count; ++i) {
            const unsigned n = static_cast<unsigned>(i);
            fibers_[i]->index = i;
            fibers_[i]->thread = {n % block_dim.x, n / block_dim.x % block_dim.y, n / block_dim.x / block_dim.y};
        }
        static_.reserve(kStaticShared);
        dynamic_bytes_ = (shared_bytes + 15) / 16 * 16;
        dynamic_.reserve(dynamic_bytes_ + 1);
    }

    void run_block() {
        std::memset(static_.begin(), kPoison, kStaticShared);
        std::memset(dynamic_shared(), kPoison, dynamic_bytes_);
        ready_.clear();
        at_barrier_ = block_total_ = 0;
        for (int i = 0; i < count_; ++i) {
            Fiber& fiber = *fibers_[i];
            prepare(fiber.place, fiber.stack, &enter, i);
            fiber.static_shared = 0;
            fiber.open_copies.clear();
            fiber.copy_groups.clear();
            wake(i);
        }
        for (int w = 0; w < count_ / kLanes; ++w) warps_[w]->arrived = 0;
        // In some blocks any thread may be next; in others those that were woken last rush ahead of all others.
        patience_ = (1u << (next_random() % 3 * 3)) - 1;
        left_ = count_;
        machine() = this;
        switch_to(block_, next());
        if (left_) die("deadlock: a barrier that not all threads reach");
    }

    // Where it goes on: with any thread that may run, and without one at the end of the block.
    Place& next() {
        if (ready_.empty()) return block_;
        if ((next_random() & patience_) == 0) std::swap(ready_[next_random() % ready_.size()], ready_.back());
        current = fibers_[ready_.back()].get();
        ready_.pop_back();
        return current->place;
    }

    void wake(int i) {
        fibers_[i]->state = State::ready;
        ready_.push_back(i);
    }

    void sleep(State state) {
        Fiber& me = *current;
        me.state = state;
        switch_to(me.place, next());
    }

    static void enter() {
        Machine& m = *machine();
        m.body_(m.argument_);
        --m.left_;
        m.sleep(State::done);
        std::abort();
    }

    static Machine*& machine() {
        static Machine* running = nullptr;
        return running;
    }

    unsigned next_random() {
        random_ ^= random_ << 13;
        random_ ^= random_ >> 17;
        random_ ^= random_ << 5;
        return random_;
    }

    const char* name_ = "";
    int count_ = 0, at_barrier_ = 0, block_total_ = 0;
    std::vector<std::unique_ptr<Fiber>> fibers_;
    std::vector<std::unique_ptr<Warp>> warps_;
    std::vector<int> ready_;
    GuardedMemory static_, dynamic_;
    size_t dynamic_bytes_ = 0;
    Place block_;   // the caller
    int left_ = 0;  // threads that have not ended
    unsigned patience_ = 0;
    void (*body_)(void*) = nullptr;
    void* argument_ = nullptr;
    unsigned random_ = 2463534242u;
};

// One a kernel library; its symbols are hidden, so that libraries do not share it.
inline Machine the_machine;

template <class... Args>
struct Call {
    void (*kernel)(Args...);
    void** parameters;

    void operator()() { run(std::index_sequence_for<Args...>{}); }
    template <size_t... I>
    void run(std::index_sequence<I...>) {
        kernel(*static_cast<std::decay_t<Args>*>(parameters[I])...);
    }
};

template <class... Args>
void invoke(const char* name, void (*kernel)(Args...), const unsigned* shape, size_t shared_bytes, void** parameters) {
    Call<Args...> call{kernel, parameters};
    the_machine.launch(name, {shape[0], shape[1], shape[2]}, {shape[3], shape[4], shape[5]}, shared_bytes, call);
}

template <class... Args>
int parameter_sizes(void (*)(Args...), int* sizes) {
    int count = 0;
    ((sizes[count++] = static_cast<int>(sizeof(Args))), ...);
    return count;
}

}  // namespace emu
