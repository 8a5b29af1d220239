// A fiber: a stack and a place to continue. Switching costs a few nanoseconds on x86-64; elsewhere ucontext does it.
#pragma once
#include <sys/mman.h>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#if !defined(__x86_64__) || defined(DI_EMU_UCONTEXT)
#include <ucontext.h>
#define DI_EMU_USES_UCONTEXT 1
#endif

namespace emu {

constexpr size_t kStackBytes = size_t{128} << 10;
constexpr size_t kPage = 4096;

// Memory whose end touches a page that nobody may read or write.
class GuardedMemory {
  public:
    GuardedMemory() = default;
    GuardedMemory(const GuardedMemory&) = delete;
    GuardedMemory& operator=(const GuardedMemory&) = delete;
    ~GuardedMemory() { release(); }

    void reserve(size_t bytes) {
        if (bytes <= capacity_) return;
        release();
        capacity_ = (bytes + kPage - 1) / kPage * kPage;
        base_ = mmap(nullptr, capacity_ + 2 * kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (base_ == MAP_FAILED || mprotect(begin(), capacity_, PROT_READ | PROT_WRITE) != 0) {
            std::fprintf(stderr, "emulator: no memory\n");
            std::abort();
        }
    }
    unsigned char* begin() const { return static_cast<unsigned char*>(base_) + kPage; }
    unsigned char* end() const { return begin() + capacity_; }

  private:
    void release() {
        if (base_) munmap(base_, capacity_ + 2 * kPage);
        base_ = nullptr;
    }

    void* base_ = nullptr;
    size_t capacity_ = 0;
};

#ifdef DI_EMU_USES_UCONTEXT

struct Place {
    ucontext_t context;
};

inline void switch_to(Place& from, Place& to) { swapcontext(&from.context, &to.context); }

inline void prepare(Place& place, GuardedMemory& stack, void (*entry)(), int) {
    getcontext(&place.context);
    place.context.uc_stack.ss_sp = stack.begin();
    place.context.uc_stack.ss_size = kStackBytes;
    place.context.uc_link = nullptr;
    makecontext(&place.context, entry, 0);
}

#else

struct Place {
    void* stack = nullptr;
};

// Saves the registers that a callee keeps, exchanges the stack, and restores those of the other side.
extern "C" void di_emu_switch(void** save, void* load);
#ifndef DI_EMU_SWITCH_DEFINED
#define DI_EMU_SWITCH_DEFINED
asm(".text\n"
    ".weak di_emu_switch\n"
    ".hidden di_emu_switch\n"
    "di_emu_switch:\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
    "  ret\n");
#endif

inline void switch_to(Place& from, Place& to) { di_emu_switch(&from.stack, to.stack); }

// Stacks begin at different offsets within their pages, or all of them would share a few lines of the cache.
inline void prepare(Place& place, GuardedMemory& stack, void (*entry)(), int index) {
    void** top = reinterpret_cast<void**>(stack.end() - index % 32 * 128);
    *--top = nullptr;  // the return address of entry, which never returns; keeps the stack aligned as after a call
    *--top = reinterpret_cast<void*>(entry);
    for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
    place.stack = top;
}

#endif

}  // namespace emu
