// The engine's own libraries that are loaded at run time, because what they need (a driver, an MPI) is not on every machine.
#pragma once
#include <string>

namespace tinyllama {

// Where `file` is: what the environment's `variable` names, else beside the file that this code is in (the addon), else in the Release folder next
// to that (programs in a neighbouring folder of the build). The file need not exist.
std::string engine_library_path(const char* variable, const char* file);

}  // namespace tinyllama
