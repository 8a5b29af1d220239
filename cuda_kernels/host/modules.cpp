#include "modules.h"

#include <dirent.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>

#include "nvrtc.h"
#include "settings.h"

namespace di {

namespace {

// The folder with cubin/ and src/: as set, else the one that this library lies in.
std::string kernel_folder() {
    std::string folder = setting("kernels");
    if (!folder.empty()) return folder;
    Dl_info info;
    if (!dladdr(reinterpret_cast<const void*>(&best_architecture), &info) || !info.dli_fname) return ".";
    folder = info.dli_fname;
    const size_t slash = folder.rfind('/');
    return slash == std::string::npos ? "." : folder.substr(0, slash);
}

// The names in a folder that end in `ending`, without it, in order.
std::vector<std::string> names_in(const std::string& folder, const std::string& ending) {
    std::vector<std::string> names;
    DIR* directory = opendir(folder.c_str());
    if (!directory) return names;
    while (const dirent* entry = readdir(directory)) {
        const std::string name = entry->d_name;
        if (name.size() > ending.size() && name.compare(name.size() - ending.size(), ending.size(), ending) == 0)
            names.push_back(name.substr(0, name.size() - ending.size()));
    }
    closedir(directory);
    std::sort(names.begin(), names.end());
    return names;
}

}  // namespace

std::string best_architecture(const std::vector<std::string>& names, int arch) {
    std::string best;
    int highest = -1;
    for (const std::string& name : names) {
        if (name.compare(0, 3, "sm_")) continue;
        const int number = std::atoi(name.c_str() + 3);
        const bool special = name.back() == 'a';  // runs on its own architecture alone
        if (number / 10 != arch / 10 || number > arch || (special && number != arch)) continue;
        const int rank = 2 * number + special;
        if (rank > highest) highest = rank, best = name;
    }
    return best;
}

void Modules::unload() {
    for (void* module : modules_) driver_.cuModuleUnload(module);
    modules_.clear();
    functions_.clear();
}

int Modules::load(const Chip& chip, Why why) {
    const std::string folder = kernel_folder();
    std::map<std::string, std::vector<std::string>> cubins;  // module → architectures
    for (const std::string& name : names_in(folder + "/cubin", ".cubin")) {
        const size_t dot = name.rfind('.');
        if (dot != std::string::npos) cubins[name.substr(0, dot)].push_back(name.substr(dot + 1));
    }
    for (const std::string& name : names_in(folder + "/src", ".cu")) cubins[name];
    if (cubins.empty())
        return why.fail(DI_EUNSUPPORTED, "no kernels in %s: the installation of dashinfer-cuda is incomplete",
                        folder.c_str());
    Nvrtc compiler;
    int compiled = 0;
    for (const auto& [module, architectures] : cubins) {
        const std::string architecture = best_architecture(architectures, chip.arch);
        if (!architecture.empty()) {
            if (const int bad = load_file(folder + "/cubin/" + module + "." + architecture + ".cubin", why)) return bad;
            description_ = architecture;
            continue;
        }
        std::string image;
        if (const int bad = compiler.compile(folder + "/src", module + ".cu", chip.arch, &image, why)) return bad;
        if (const int bad = load_image(image, module, why)) return bad;
        ++compiled;
    }
    if (compiled) {
        description_ += description_.empty() ? "sm_" + std::to_string(chip.arch) : "";
        description_ += ", " + std::to_string(compiled) + " modules compiled here";
    }
    return DI_OK;
}

int Modules::load_file(const std::string& path, Why why) {
    std::string image;
    if (!read_file(path, &image)) return why.fail(DI_EUNSUPPORTED, "cannot read %s", path.c_str());
    return load_image(image, path, why);
}

int Modules::load_image(const std::string& image, const std::string& name, Why why) {
    void* module = nullptr;
    const std::string what = "the kernels of " + name + " do not load";
    if (const int bad = driver_.check(driver_.cuModuleLoadData(&module, image.c_str()), why, what.c_str())) return bad;
    modules_.push_back(module);
    return DI_OK;
}

void* Modules::function(const char* name, int shared) {
    auto found = functions_.find(name);
    if (found == functions_.end()) {
        Function function{nullptr, 0};
        for (void* module : modules_)
            if (driver_.cuModuleGetFunction(&function.handle, module, name) == 0) break;
        if (!function.handle) return nullptr;
        found = functions_.emplace(name, function).first;
    }
    Function& function = found->second;
    if (shared > function.shared) {
        if (driver_.cuFuncSetAttribute(function.handle, kSharedAttribute, shared)) return nullptr;
        function.shared = shared;
    }
    return function.handle;
}

}  // namespace di
