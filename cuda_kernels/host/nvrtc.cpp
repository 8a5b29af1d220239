#include "nvrtc.h"

#include <dirent.h>
#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "settings.h"

namespace di {

namespace {

constexpr const char* kSonames[] = {"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2"};

template <class F>
F symbol(void* library, const char* name) {
    return reinterpret_cast<F>(dlsym(library, name));
}

// FNV-1a, 64 bits: names a file in a cache that the user owns.
struct Hash {
    uint64_t value = 14695981039346656037ull;

    void add(const std::string& text) {
        for (const char c : text) value = (value ^ static_cast<unsigned char>(c)) * 1099511628211ull;
    }
};

// Of everything that a source may include.
uint64_t hash_of(const std::string& folder) {
    std::vector<std::string> names;
    if (DIR* directory = opendir(folder.c_str())) {
        while (const dirent* entry = readdir(directory)) names.emplace_back(entry->d_name);
        closedir(directory);
    }
    std::sort(names.begin(), names.end());
    Hash hash;
    for (const std::string& name : names) {
        std::string content;
        if (!read_file(folder + "/" + name, &content)) continue;
        hash.add(name);
        hash.add(content);
    }
    return hash.value;
}

bool write_file(const std::string& path, const std::string& content) {
    const std::string fresh = path + "." + std::to_string(getpid());
    FILE* file = std::fopen(fresh.c_str(), "wb");
    if (!file) return false;
    const bool whole = std::fwrite(content.data(), 1, content.size(), file) == content.size();
    if (std::fclose(file) == 0 && whole && std::rename(fresh.c_str(), path.c_str()) == 0) return true;
    std::remove(fresh.c_str());
    return false;
}

}  // namespace

bool read_file(const std::string& path, std::string* content) {
    FILE* file = std::fopen(path.c_str(), "rb");
    if (!file) return false;
    content->clear();
    char buffer[1 << 16];
    size_t count;
    while ((count = std::fread(buffer, 1, sizeof buffer, file)) > 0) content->append(buffer, count);
    const bool good = !std::ferror(file);
    std::fclose(file);
    return good;
}

Nvrtc::~Nvrtc() {
    if (library_) dlclose(library_);
}

int Nvrtc::open(Why why) {
    if (library_) return DI_OK;
    const std::string named = setting("nvrtc");
    if (!named.empty()) library_ = dlopen(named.c_str(), RTLD_NOW | RTLD_LOCAL);
    for (const char* name : kSonames)
        if (!library_) library_ = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (!library_)
        return why.fail(DI_EUNSUPPORTED,
                        "this GPU needs kernels that are compiled on the spot, but libnvrtc was not found; pip install "
                        "nvidia-cuda-nvrtc-cu12, or set DASHINFER_CUDA_NVRTC to the library");
    int major = 0, minor = 0;
    if (const auto version = symbol<int (*)(int*, int*)>(library_, "nvrtcVersion")) version(&major, &minor);
    version_ = 1000 * major + 10 * minor;
    return DI_OK;
}

int Nvrtc::compile(const std::string& folder, const std::string& name, int arch, std::string* image, Why why) {
    std::string source;
    if (!read_file(folder + "/" + name, &source))
        return why.fail(DI_EUNSUPPORTED, "cannot read %s/%s", folder.c_str(), name.c_str());
    if (const int bad = open(why)) return bad;
    const std::string cache = setting("cache");
    if (cache.empty()) return build(source, folder, name, arch, image, why);
    char path[4096];
    std::snprintf(path, sizeof path, "%s/%s.sm_%d.%d.%016llx.cubin", cache.c_str(), name.c_str(), arch, version_,
                  static_cast<unsigned long long>(hash_of(folder)));
    if (read_file(path, image)) return DI_OK;
    if (const int bad = build(source, folder, name, arch, image, why)) return bad;
    write_file(path, *image);
    return DI_OK;
}

int Nvrtc::build(const std::string& source, const std::string& folder, const std::string& name, int arch,
                 std::string* image, Why why) const {
    using Program = void*;
    const auto create =
        symbol<int (*)(Program*, const char*, const char*, int, const char* const*, const char* const*)>(
            library_, "nvrtcCreateProgram");
    const auto run = symbol<int (*)(Program, int, const char* const*)>(library_, "nvrtcCompileProgram");
    const auto log_size = symbol<int (*)(Program, size_t*)>(library_, "nvrtcGetProgramLogSize");
    const auto log = symbol<int (*)(Program, char*)>(library_, "nvrtcGetProgramLog");
    const auto size = symbol<int (*)(Program, size_t*)>(library_, "nvrtcGetCUBINSize");
    const auto get = symbol<int (*)(Program, char*)>(library_, "nvrtcGetCUBIN");
    const auto destroy = symbol<int (*)(Program*)>(library_, "nvrtcDestroyProgram");
    if (!create || !run || !log_size || !log || !size || !get || !destroy)
        return why.fail(DI_EUNSUPPORTED, "the libnvrtc found is too old; version 11.4 or newer is needed");
    const std::string architecture = "--gpu-architecture=sm_" + std::to_string(arch), include = "-I" + folder;
    const char* options[] = {architecture.c_str(), include.c_str(), "-std=c++17", "-fmad=false", "-ftz=true"};
    Program program = nullptr;
    if (create(&program, source.c_str(), name.c_str(), 0, nullptr, nullptr))
        return why.fail(DI_EINTERNAL, "libnvrtc refuses %s", name.c_str());
    int status = DI_OK;
    size_t bytes = 0;
    if (run(program, sizeof options / sizeof *options, options)) {
        log_size(program, &bytes);
        std::string text(bytes + 1, 0);
        log(program, &text[0]);
        status = why.fail(DI_EUNSUPPORTED, "%s does not compile for sm_%d: %.300s", name.c_str(), arch, text.c_str());
    } else {
        size(program, &bytes);
        image->resize(bytes);
        get(program, &(*image)[0]);
    }
    destroy(&program);
    return status;
}

}  // namespace di
