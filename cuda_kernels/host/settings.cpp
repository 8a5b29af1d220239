#include "settings.h"

#include <cctype>
#include <cstdlib>
#include <map>
#include <mutex>

namespace di {

namespace {

struct Settings {
    std::mutex mutex;
    std::map<std::string, std::string> values;
};

Settings& settings() {
    static Settings all;
    return all;
}

}  // namespace

std::string setting(const char* name) {
    std::string variable = "DASHINFER_CUDA_";
    for (const char* c = name; *c; ++c) variable += static_cast<char>(std::toupper(static_cast<unsigned char>(*c)));
    const char* text = std::getenv(variable.c_str());
    if (text && *text) return text;
    const std::lock_guard<std::mutex> lock(settings().mutex);
    const auto found = settings().values.find(name);
    return found == settings().values.end() ? std::string() : found->second;
}

}  // namespace di

extern "C" __attribute__((visibility("default"))) void di_cuda_set(const char* name, const char* value) {
    const std::lock_guard<std::mutex> lock(di::settings().mutex);
    di::settings().values[name] = value;
}
