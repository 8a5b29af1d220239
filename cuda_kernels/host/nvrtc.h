// The run-time compiler by dlopen, for GPUs that no cubin was made for.
#pragma once
#include <string>

#include "why.h"

namespace di {

bool read_file(const std::string& path, std::string* content);

class Nvrtc {
  public:
    Nvrtc() = default;
    ~Nvrtc();
    Nvrtc(const Nvrtc&) = delete;
    Nvrtc& operator=(const Nvrtc&) = delete;

    // Compiles folder/name for sm_<arch>. Where a cache folder is set, what was compiled before is taken from there.
    int compile(const std::string& folder, const std::string& name, int arch, std::string* image, Why why);

  private:
    int open(Why why);
    int build(const std::string& source, const std::string& folder, const std::string& name, int arch,
              std::string* image, Why why) const;

    void* library_ = nullptr;
    int version_ = 0;
};

}  // namespace di
