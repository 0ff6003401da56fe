// Functions of a library that is loaded at run time.
#pragma once
#include <dlfcn.h>

namespace tinyllama {

// False where the library lacks it.
template <class Function>
bool resolve(void* handle, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(handle, name));
  return function != nullptr;
}

}  // namespace tinyllama
