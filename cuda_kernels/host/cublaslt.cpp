#include "cublaslt.h"

#include <dlfcn.h>

#include "notice.h"
#include "settings.h"

namespace di {

namespace {

constexpr const char* kSonames[] = {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so.11"};
constexpr int kOldest = 11, kNewest = 13;
constexpr int kLastForVolta = 12;

// 120901 is 12.9.1; before 12 there was a digit less.
int major_of(size_t version) { return static_cast<int>(version / (version < 100000 ? 1000 : 10000)); }

std::string text_of(size_t version) {
    const size_t rest = version % (version < 100000 ? 1000 : 10000);
    return std::to_string(major_of(version)) + "." + std::to_string(rest / 100) + "." + std::to_string(rest % 100);
}

std::string path_of(void* symbol, const char* otherwise) {
    Dl_info info;
    return dladdr(symbol, &info) && info.dli_fname ? info.dli_fname : otherwise;
}

}  // namespace

int CublasLt::load(int arch, Why why) {
    const std::string named = setting("cublaslt");
    if (named == "0") return why.fail(DI_EUNSUPPORTED, "DASHINFER_CUDA_CUBLASLT turns it off");
    int status = why.fail(DI_EUNSUPPORTED, "not found");
    if (!named.empty() && (status = load_from(named.c_str(), arch, why)) == DI_OK) return DI_OK;
    for (const char* name : kSonames) {
        char other[256] = "";
        const Why reason = found_ || !named.empty() ? Why{other, sizeof other} : why;  // the first says why
        if (load_from(name, arch, reason) == DI_OK) return DI_OK;
    }
    return status;
}

int CublasLt::load_from(const char* name, int arch, Why why) {
    void* library = dlopen(name, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (!library) return why.fail(DI_EUNSUPPORTED, "not found (%s)", dlerror());
    found_ = true;
    const auto get_version = reinterpret_cast<size_t (*)()>(dlsym(library, "cublasLtGetVersion"));
    const char* missing = get_version ? nullptr : "cublasLtGetVersion";
#define DI_RESOLVE(entry, ...)                                    \
    *reinterpret_cast<void**>(&(entry)) = dlsym(library, #entry); \
    if (!(entry) && !missing) missing = #entry;
    DI_CUBLASLT(DI_RESOLVE)
#undef DI_RESOLVE
    if (missing) return dlclose(library), why.fail(DI_EUNSUPPORTED, "%s lacks %s", name, missing);
    const size_t version = get_version();
    const std::string text = text_of(version);
    if (major_of(version) < kOldest || major_of(version) > kNewest)
        return dlclose(library),
               why.fail(DI_EUNSUPPORTED, "%s is version %s; %d to %d are known", name, text.c_str(), kOldest, kNewest);
    if (arch && arch < 75 && major_of(version) > kLastForVolta)
        return dlclose(library),
               why.fail(DI_EUNSUPPORTED, "%s is version %s, which has no kernels for sm_%d", name, text.c_str(), arch);
    description_ = path_of(reinterpret_cast<void*>(get_version), name) + ", version " + text;
    return DI_OK;
}

bool CublasLt::open(const Chip& chip) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (tried_) return handle_ != nullptr;
    tried_ = true;
    char reason[256] = "";
    if (load(chip.arch, {reason, sizeof reason})) {
        if (found_ || (!setting("cublaslt").empty() && setting("cublaslt") != "0"))
            notice("cuBLASLt is not used: %s", reason);
        return false;
    }
    if (const int status = cublasLtCreate(&handle_)) {
        handle_ = nullptr;
        notice("cuBLASLt is not used: %s does not start (status %d)", description_.c_str(), status);
    }
    return handle_ != nullptr;
}

void CublasLt::close() {
    if (handle_) cublasLtDestroy(handle_);
    handle_ = nullptr;
}

}  // namespace di

// For `python -m dashinfer_cuda`: which library is found, or why none. 0 where there is one.
extern "C" __attribute__((visibility("default"))) int di_cuda_cublaslt(char* text, size_t size) {
    di::CublasLt library;
    const int status = library.load(0, {text, size});
    if (status == DI_OK) std::snprintf(text, size, "%s", library.description().c_str());
    return status;
}
