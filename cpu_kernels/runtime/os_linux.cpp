// The operating system: Linux.
#include "os.h"

#include <cerrno>
#include <climits>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>

#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace di {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

size_t page_bytes();
size_t round_up(size_t n, size_t step);
uint64_t clock_ns(clockid_t clock);
size_t read_text(const char* path, char* out, size_t size);
int64_t field_bytes(const char* text, const char* name);

class AffinityMask;
bool lowest_allowed_sibling(int cpu, const AffinityMask& allowed, const char* sysfs);
double mount_quota(char* mountinfo_line, const char* cgroup_file);

std::atomic<uint32_t> forks{0};
void count_fork() { forks.fetch_add(1, std::memory_order_relaxed); }

}  // namespace

// ---- Memory ----------------------------------------------------------------------------------------------------

bool os_map(size_t bytes, bool huge, Memory* out) {
    *out = Memory{};
    if (bytes == 0 || bytes > SIZE_MAX / 4) return false;
    const size_t size = round_up(bytes, huge ? kHugePage : page_bytes());
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* raw = mmap(nullptr, size + kHugePage, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (raw == MAP_FAILED) return false;

    // Cut the aligned part out of the larger mapping.
    const uintptr_t begin = reinterpret_cast<uintptr_t>(raw), end = begin + size + kHugePage;
    const uintptr_t data = round_up(begin, kHugePage);
    if (data > begin) munmap(raw, data - begin);
    if (end > data + size) munmap(reinterpret_cast<void*>(data + size), end - data - size);

    // Refused by a kernel without transparent huge pages, which costs speed and nothing else.
    madvise(reinterpret_cast<void*>(data), size, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    out->data = reinterpret_cast<void*>(data);
    out->bytes = size;
    return true;
}

void os_unmap(Memory* memory) {
    if (memory->data != nullptr) munmap(memory->data, memory->bytes);
    *memory = Memory{};
}

void os_discard(void* ptr, size_t bytes) {
    const uintptr_t page = page_bytes(), begin = round_up(reinterpret_cast<uintptr_t>(ptr), page);
    const uintptr_t end = (reinterpret_cast<uintptr_t>(ptr) + bytes) / page * page;
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

size_t os_rss_bytes() {
    char text[128];
    unsigned long total = 0, resident = 0;
    read_text("/proc/self/statm", text, sizeof text);
    return sscanf(text, "%lu %lu", &total, &resident) == 2 ? resident * page_bytes() : 0;
}

size_t os_peak_rss_bytes() {
    char text[8192];
    read_text("/proc/self/status", text, sizeof text);
    return static_cast<size_t>(field_bytes(text, "VmHWM:"));
}

// ---- Time ------------------------------------------------------------------------------------------------------

uint64_t os_now_ns() { return clock_ns(CLOCK_MONOTONIC); }

uint64_t os_thread_cpu_ns() { return clock_ns(CLOCK_THREAD_CPUTIME_ID); }

// ---- Threads ---------------------------------------------------------------------------------------------------

int os_thread_start(Thread* out, void* (*fn)(void*), void* arg) {
    // Not a multiple of 2 MB: a system that makes every aligned mapping huge would spend a whole page on each stack.
    constexpr size_t kStack = size_t{1} << 20;
    pthread_attr_t attributes;
    if (int error = pthread_attr_init(&attributes)) return error;
    pthread_attr_setstacksize(&attributes, kStack);

    // A new thread inherits the mask of its creator. Faults stay deliverable, and so does the profilers' signal.
    sigset_t blocked, before;
    sigfillset(&blocked);
    constexpr int kDelivered[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGPROF};
    for (const int signal : kDelivered) sigdelset(&blocked, signal);
    pthread_sigmask(SIG_SETMASK, &blocked, &before);
    pthread_t thread{};
    const int error = pthread_create(&thread, &attributes, fn, arg);
    pthread_sigmask(SIG_SETMASK, &before, nullptr);

    pthread_attr_destroy(&attributes);
    out->handle = static_cast<uintptr_t>(thread);
    return error;
}

void os_thread_join(Thread thread) { pthread_join(static_cast<pthread_t>(thread.handle), nullptr); }

bool os_pin_thread(int cpu) {
    if (cpu < 0 || cpu >= 1 << 16) return false;
    const size_t bytes = CPU_ALLOC_SIZE(cpu + 1);
    cpu_set_t* set = CPU_ALLOC(cpu + 1);
    if (set == nullptr) return false;
    CPU_ZERO_S(bytes, set);
    CPU_SET_S(cpu, bytes, set);
    const bool done = sched_setaffinity(0, bytes, set) == 0;
    CPU_FREE(set);
    return done;
}

void os_name_thread(const char* name) {
    char kept[16];
    snprintf(kept, sizeof kept, "%s", name);
    pthread_setname_np(pthread_self(), kept);
}

static_assert(sizeof(std::atomic<uint32_t>) == 4 && std::atomic<uint32_t>::is_always_lock_free,
              "a futex is a plain 32-bit word");

void os_futex_wait(std::atomic<uint32_t>* word, uint32_t expected) {
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, nullptr, nullptr, 0);
}

void os_futex_wake(std::atomic<uint32_t>* word, int waiters) {
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, waiters, nullptr, nullptr, 0);
}

bool os_at_fork(void (*in_child)()) { return pthread_atfork(nullptr, nullptr, in_child) == 0; }

uint32_t os_fork_generation() {
    static const bool counting = os_at_fork(count_fork);
    (void)counting;
    return forks.load(std::memory_order_relaxed);
}

// ---- Machine ---------------------------------------------------------------------------------------------------

int os_usable_cpus() {
    int cpus = os_cores(nullptr, 0);
    const double quota = os_cpu_quota();
    if (quota > 0 && quota < cpus) cpus = static_cast<int>(std::ceil(quota));
    return cpus > 1 ? cpus : 1;
}

namespace {

// The logical CPUs that the calling thread may run on, however many the machine has.
class AffinityMask {
  public:
    AffinityMask() {
        for (int cpus = 1024; cpus <= 1 << 16; cpus *= 2) {
            set_ = CPU_ALLOC(cpus);
            bytes_ = CPU_ALLOC_SIZE(cpus);
            if (set_ == nullptr || sched_getaffinity(0, bytes_, set_) == 0) break;
            CPU_FREE(set_);  // EINVAL: the kernel's mask is larger
            set_ = nullptr;
        }
    }
    ~AffinityMask() {
        if (set_ != nullptr) CPU_FREE(set_);
    }
    AffinityMask(const AffinityMask&) = delete;
    AffinityMask& operator=(const AffinityMask&) = delete;

    int end() const { return set_ != nullptr ? static_cast<int>(bytes_ * 8) : 0; }
    bool has(int cpu) const { return cpu >= 0 && cpu < end() && CPU_ISSET_S(cpu, bytes_, set_); }

  private:
    cpu_set_t* set_ = nullptr;
    size_t bytes_ = 0;
};

}  // namespace

int os_cores(int* cpus, int max, const char* sysfs) {
    const AffinityMask allowed;
    int count = 0;
    for (int cpu = 0; cpu < allowed.end(); cpu++) {
        if (!allowed.has(cpu) || !lowest_allowed_sibling(cpu, allowed, sysfs)) continue;
        if (count < max) cpus[count] = cpu;
        count++;
    }
    return count;
}

double os_cpu_quota(const char* cgroup, const char* mountinfo) {
    FILE* mounts = fopen(mountinfo, "re");
    if (mounts == nullptr) return 0;
    double quota = 0;
    char* line = nullptr;
    size_t capacity = 0;
    while (getline(&line, &capacity, mounts) > 0) {
        const double limit = mount_quota(line, cgroup);
        if (limit > 0 && (quota == 0 || limit < quota)) quota = limit;
    }
    free(line);
    fclose(mounts);
    return quota;
}

void os_memory(int64_t* total, int64_t* available) {
    char text[4096];
    read_text("/proc/meminfo", text, sizeof text);
    *total = field_bytes(text, "MemTotal:");
    *available = field_bytes(text, "MemAvailable:");
}

uint32_t os_cache_bytes(int level) {
    for (int index = 0; index < 8; index++) {
        char path[96], text[32];
        const auto read = [&](const char* name) {
            snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/%s", index, name);
            return read_text(path, text, sizeof text) > 0;
        };
        if (!read("level") || atoi(text) != level || !read("type") || text[0] == 'I' || !read("size")) continue;
        char* unit = nullptr;
        const unsigned long size = strtoul(text, &unit, 10);
        return static_cast<uint32_t>(*unit == 'K' ? size << 10 : *unit == 'M' ? size << 20 : size);
    }
    return 0;
}

bool os_allow_amx() {
#if defined(__x86_64__)
    // Linux, Documentation/arch/x86/xstate.rst. The permission covers all threads and survives fork, not exec.
    constexpr int kGetPermission = 0x1022, kRequestPermission = 0x1023, kTileData = 18;
    if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) != 0) return false;
    uint64_t permitted = 0;
    return syscall(SYS_arch_prctl, kGetPermission, &permitted) == 0 && (permitted >> kTileData & 1) != 0;
#else
    return false;
#endif
}

void os_hwcaps(uint64_t* hwcap, uint64_t* hwcap2) {
#if defined(__aarch64__)
    *hwcap = getauxval(AT_HWCAP);
    *hwcap2 = getauxval(AT_HWCAP2);
#else
    *hwcap = *hwcap2 = 0;
#endif
}

// ---- Helpers ---------------------------------------------------------------------------------------------------

namespace {

size_t page_bytes() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

size_t round_up(size_t n, size_t step) { return (n + step - 1) / step * step; }

uint64_t clock_ns(clockid_t clock) {
    timespec t{};
    clock_gettime(clock, &t);
    return static_cast<uint64_t>(t.tv_sec) * 1000000000u + static_cast<uint64_t>(t.tv_nsec);
}

// Reads the start of a small file as a string; returns its length, 0 (and an empty string) if it cannot be read.
size_t read_text(const char* path, char* out, size_t size) {
    size_t length = 0;
    const int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file >= 0) {
        while (length + 1 < size) {
            const ssize_t got = read(file, out + length, size - 1 - length);
            if (got < 0 && errno == EINTR) continue;
            if (got <= 0) break;
            length += static_cast<size_t>(got);
        }
        close(file);
    }
    out[length] = '\0';
    return length;
}

// The value of a line such as "VmHWM:    1234 kB"; 0 if there is none.
int64_t field_bytes(const char* text, const char* name) {
    const char* line = strstr(text, name);
    return line != nullptr ? strtoll(line + strlen(name), nullptr, 10) * 1024 : 0;
}

// Whether no sibling of `cpu` (a list such as "0-1,8") with a smaller number is allowed too.
bool lowest_allowed_sibling(int cpu, const AffinityMask& allowed, const char* sysfs) {
    char path[PATH_MAX], text[1024];
    snprintf(path, sizeof path, "%s/cpu%d/topology/thread_siblings_list", sysfs, cpu);
    read_text(path, text, sizeof text);
    for (const char* at = text; *at >= '0' && *at <= '9';) {
        char* end = nullptr;
        const long first = strtol(at, &end, 10), last = *end == '-' ? strtol(end + 1, &end, 10) : first;
        for (long sibling = first; sibling <= last && sibling < cpu; sibling++) {
            if (allowed.has(static_cast<int>(sibling))) return false;
        }
        at = *end == ',' ? end + 1 : end;
    }
    return true;
}

// Whether the comma-separated `list` names `word`.
bool lists(const char* list, const char* word) {
    const size_t length = strlen(word);
    for (const char* at = list; at != nullptr; at = strchr(at, ',')) {
        if (*at == ',') at++;
        const size_t item = strcspn(at, ",\n");
        if (item == length && memcmp(at, word, length) == 0) return true;
    }
    return false;
}

// The path of this process in a hierarchy: "0::/path" for v2, "4:cpu,cpuacct:/path" for v1. False: not in it.
bool cgroup_path(const char* cgroup_file, bool v2, char* out, size_t size) {
    FILE* file = fopen(cgroup_file, "re");
    if (file == nullptr) return false;
    bool found = false;
    char* line = nullptr;
    size_t capacity = 0;
    while (!found && getline(&line, &capacity, file) > 0) {
        char* controllers = strchr(line, ':');
        char* path = controllers != nullptr ? strchr(controllers + 1, ':') : nullptr;
        if (path == nullptr) continue;
        *controllers++ = *path++ = '\0';
        path[strcspn(path, "\n")] = '\0';
        if (v2 ? strcmp(line, "0") == 0 && *controllers == '\0' : lists(controllers, "cpu")) {
            found = snprintf(out, size, "%s", path) < static_cast<int>(size);
        }
    }
    free(line);
    fclose(file);
    return found;
}

double directory_quota(const char* directory, bool v2) {
    char path[2 * PATH_MAX + 32], text[64];
    double quota = 0, period = 0;
    snprintf(path, sizeof path, "%s/%s", directory, v2 ? "cpu.max" : "cpu.cfs_quota_us");
    if (read_text(path, text, sizeof text) == 0) return 0;
    if (v2) {
        if (sscanf(text, "%lf %lf", &quota, &period) != 2) return 0;  // "max 100000": unlimited
    } else {
        quota = atof(text);  // -1: unlimited
        snprintf(path, sizeof path, "%s/cpu.cfs_period_us", directory);
        read_text(path, text, sizeof text);
        period = atof(text);
    }
    return quota > 0 && period > 0 ? quota / period : 0;
}

// One line of mountinfo (proc(5)): "36 35 98:0 ROOT POINT options … - TYPE source SUPER". Where it mounts a cgroup
// hierarchy with the CPU controller: the smallest quota from this process's group up to the mount point, else 0.
double mount_quota(char* line, const char* cgroup_file) {
    char root[PATH_MAX], point[PATH_MAX], type[32], super[1024], path[PATH_MAX], directory[2 * PATH_MAX];
    static_assert(PATH_MAX == 4096, "the field widths below");
    const char* tail = strstr(line, " - ");
    if (tail == nullptr || sscanf(line, "%*s %*s %*s %4095s %4095s", root, point) != 2) return 0;
    if (sscanf(tail, " - %31s %*s %1023s", type, super) != 2) return 0;
    const bool v2 = strcmp(type, "cgroup2") == 0;
    if (!v2 && !(strcmp(type, "cgroup") == 0 && lists(super, "cpu"))) return 0;
    if (!cgroup_path(cgroup_file, v2, path, sizeof path)) return 0;

    // In a container the mount may start below the hierarchy's top, and the path be told from the top.
    const size_t prefix = strcmp(root, "/") == 0 ? 0 : strlen(root);
    const bool below = strncmp(path, root, prefix) == 0 && (path[prefix] == '/' || path[prefix] == '\0');
    snprintf(directory, sizeof directory, "%s%s", point, path + (below ? prefix : 0));
    double smallest = 0;
    const char* top = directory + strlen(point);
    for (char* end = directory + strlen(directory); end != nullptr && end >= top; end = strrchr(directory, '/')) {
        *end = '\0';
        const double quota = directory_quota(directory, v2);
        if (quota > 0 && (smallest == 0 || quota < smallest)) smallest = quota;
    }
    return smallest;
}

}  // namespace
}  // namespace di
