// The compiled kernels for one GPU: the best cubin of each module, or its source compiled on the spot.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "driver.h"
#include "launch.h"

namespace di {

// The cubin of a module that runs on `arch`, of those that there are ("sm_80", "sm_90a"): the very architecture with
// its special features, the very architecture, or the highest lower one of the same major version. "" where none does.
std::string best_architecture(const std::vector<std::string>& names, int arch);

class Modules {
  public:
    explicit Modules(const Driver& driver) : driver_(driver) {}
    Modules(const Modules&) = delete;
    Modules& operator=(const Modules&) = delete;

    // Loads every module into the current context.
    int load(const Chip& chip, Why why);

    void unload();  // in the same context

    // A kernel that may take `shared` bytes of dynamic shared memory; null where no module has it or the GPU refuses.
    void* function(const char* name, int shared);

    const std::string& description() const { return description_; }

  private:
    struct Function {
        void* handle;
        int shared;
    };

    int load_file(const std::string& path, Why why);
    int load_image(const std::string& image, const std::string& name, Why why);

    const Driver& driver_;
    std::vector<void*> modules_;
    std::map<std::string, Function> functions_;
    std::string description_;  // "sm_80", or "sm_80, 3 modules compiled here"
};

}  // namespace di
