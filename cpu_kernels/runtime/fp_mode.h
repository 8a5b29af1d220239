// The floating-point mode of all arithmetic: round to nearest, no traps, subnormals are zero on the way in and out.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace di {

#if defined(__x86_64__)
constexpr uint64_t kKernelFpMode = 0x1F80 | 0x8040;  // MXCSR: exceptions masked | FTZ, DAZ
inline uint64_t fp_mode() { return _mm_getcsr(); }
inline void set_fp_mode(uint64_t mode) { _mm_setcsr(static_cast<uint32_t>(mode)); }
#elif defined(__aarch64__)
constexpr uint64_t kKernelFpMode = uint64_t{1} << 24;  // FPCR: FZ
inline uint64_t fp_mode() {
    uint64_t mode;
    asm volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
}
inline void set_fp_mode(uint64_t mode) { asm volatile("msr fpcr, %0" ::"r"(mode) : "memory"); }
#else
#error "fp_mode.h: this architecture has no floating-point mode yet"
#endif

// Sets the kernels' mode on the calling thread and puts the thread's own, sticky flags included, back at the end.
class KernelFpMode {
  public:
    KernelFpMode() : before_(fp_mode()) { set_fp_mode(kKernelFpMode); }
    ~KernelFpMode() { set_fp_mode(before_); }
    KernelFpMode(const KernelFpMode&) = delete;
    KernelFpMode& operator=(const KernelFpMode&) = delete;

  private:
    uint64_t before_;
};

}  // namespace di
