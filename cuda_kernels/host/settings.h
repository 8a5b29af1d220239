// Where things are found on this machine. Python sets what it knows; the environment wins.
#pragma once
#include <string>

namespace di {

// DASHINFER_CUDA_<NAME> from the environment, else what di_cuda_set gave, else "". Names:
//   driver, nvrtc  libraries
//   cublaslt       a library; 0: none
//   cublaslt_rows  products of more rows are its
//   kernels        a folder with cubin/ and src/
//   cache          a folder for kernels that are compiled here
//   graphs         0: every step launch by launch
std::string setting(const char* name);

}  // namespace di
