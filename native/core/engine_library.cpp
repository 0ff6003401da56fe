#include "native/core/engine_library.h"

#include <dlfcn.h>

#include <cstdlib>
#include <filesystem>

namespace tinyllama {

std::string engine_library_path(const char* variable, const char* file) {
  if (const char* named = std::getenv(variable)) return named;
  Dl_info here{};
  dladdr(reinterpret_cast<const void*>(&engine_library_path), &here);
  const std::filesystem::path folder = std::filesystem::absolute(here.dli_fname).parent_path();
  const std::filesystem::path neighbour = folder.parent_path() / "Release" / file;
  return !std::filesystem::exists(folder / file) && std::filesystem::exists(neighbour) ? neighbour : folder / file;
}

}  // namespace tinyllama
