// Attributes of the hot paths.
#pragma once

#define DI_INLINE inline __attribute__((always_inline))
#define DI_NOINLINE __attribute__((noinline))
