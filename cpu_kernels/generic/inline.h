// Attributes of the hot paths.
#pragma once

#define DI_INLINE inline __attribute__((always_inline))
#define DI_NOINLINE __attribute__((noinline))

namespace di {
namespace {

// A prefetch that stays where it is written. Compilers bunch plain ones, and in a bunch they wait for each other where
// single ones pass beside the arithmetic.
DI_INLINE void prefetch_in_place(const void* p) {
    __builtin_prefetch(p);
    asm volatile("" ::: "memory");
}

}  // namespace
}  // namespace di
