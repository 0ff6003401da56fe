// Where the libraries of CUDA that the engine opens at run time may lie, beside the loader's own path.
#pragma once
#include <string>
#include <vector>

namespace tinyllama {

// Of these, those that exist, in this order:
//   1. $CUDA_HOME/lib64, $CUDA_PATH/lib64, /usr/local/cuda/lib64.
//   2. The folders `wheels` ("nvidia/nccl/lib") in the site-packages of $VIRTUAL_ENV, $CONDA_PREFIX (whose own lib counts too), of the prefix of
//      every python3 on PATH, of ~/.local, /usr/local and /usr.
std::vector<std::string> library_folders(const std::vector<std::string>& wheels);

}  // namespace tinyllama
