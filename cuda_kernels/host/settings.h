// Where things are found on this machine. Python sets what it knows; the environment wins.
#pragma once
#include <string>

namespace di {

// "kernels" (folder with cubin/ and src/), "nvrtc" and "cublaslt" (libraries), "cache" (folder for kernels compiled
// here): DASHINFER_CUDA_KERNELS and so on, else what di_cuda_set gave, else "".
std::string setting(const char* name);

}  // namespace di
