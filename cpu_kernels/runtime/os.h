// The operating system, as far as this project needs it. Every system call of the native code is behind this header;
// os_linux.cpp is its one implementation so far. Nothing here runs at library load, throws, or prints.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace di {

// ---- Memory ----------------------------------------------------------------------------------------------------

struct Memory {
    void* data = nullptr;
    size_t bytes = 0;  // mapped size: what was asked for, rounded up to whole pages
};

// Maps zero-filled private memory, aligned to 2 MB, that occupies nothing until it is touched. `huge` asks for 2 MB
// pages; without it pages stay small, so that what is touched is what is paid for. False: too large, or no memory.
bool os_map(size_t bytes, bool huge, Memory* out);

// Gives a mapping back and clears it. An empty one is left alone.
void os_unmap(Memory* memory);

// Gives back the whole pages inside [ptr, ptr + bytes); they read as zeros afterwards. Partial pages are kept.
void os_discard(void* ptr, size_t bytes);

size_t os_rss_bytes();       // resident memory of the process now, 0 if unknown
size_t os_peak_rss_bytes();  // and the most it ever had

// ---- Time ------------------------------------------------------------------------------------------------------

uint64_t os_now_ns();         // monotonic
uint64_t os_thread_cpu_ns();  // CPU time used by the calling thread

// ---- Threads ---------------------------------------------------------------------------------------------------

struct Thread {
    uintptr_t handle = 0;
};

// Starts a thread with all asynchronous signals blocked, so that a host's handlers run on the host's own threads.
// Returns 0 or an errno.
int os_thread_start(Thread* out, void* (*fn)(void*), void* arg);
void os_thread_join(Thread thread);

bool os_pin_thread(int cpu);            // binds the calling thread to one logical CPU
void os_name_thread(const char* name);  // at most 15 characters are kept

// Sleeps while *word == expected, until woken; may also return for no reason.
void os_futex_wait(std::atomic<uint32_t>* word, uint32_t expected);
void os_futex_wake(std::atomic<uint32_t>* word, int waiters);

// Registers a function to run in the child after every later fork(). False: no memory.
bool os_at_fork(void (*in_child)());

// A number that differs between a process and its forked children. Forks count from the first call on.
uint32_t os_fork_generation();

// ---- Machine ---------------------------------------------------------------------------------------------------

// Threads worth running: the physical cores this process may use, cut to its cgroup's CPU quota; at least 1.
int os_usable_cpus();

// Counts the physical cores in the affinity mask of the calling thread and writes up to `max` of them to `cpus`, each
// as its lowest allowed logical CPU, ascending. Where the topology cannot be read, every logical CPU counts.
int os_cores(int* cpus, int max, const char* sysfs = "/sys/devices/system/cpu");

// CPUs' worth of time that cgroups v1 and v2 grant this process, the smallest limit on the way up; 0 when unlimited.
double os_cpu_quota(const char* cgroup = "/proc/self/cgroup", const char* mountinfo = "/proc/self/mountinfo");

// Bytes of memory the machine has, and could give out without swapping; zeros if unknown.
void os_memory(int64_t* total, int64_t* available);

// Size of the data (or unified) cache of a level as CPU 0 sees it; 0 if unknown.
uint32_t os_cache_bytes(int level);

// Asks the kernel, for the whole process, to let AMX tile registers be used. False: refused, or not x86-64.
bool os_allow_amx();

// The kernel's description of an ARM processor; zeros elsewhere.
void os_hwcaps(uint64_t* hwcap, uint64_t* hwcap2);

}  // namespace di
