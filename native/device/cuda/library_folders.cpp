#include "native/device/cuda/library_folders.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <sstream>
#include <system_error>

namespace tinyllama {
namespace {

namespace fs = std::filesystem;

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

// The sub-folders of `folder` whose names start with `prefix`, the latest name first.
std::vector<fs::path> folders_starting(const fs::path& folder, const std::string& prefix) {
  std::vector<fs::path> found;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error))
    if (entry->path().filename().string().starts_with(prefix)) found.push_back(entry->path());
  std::sort(found.rbegin(), found.rend());
  return found;
}

void add_folder(std::vector<std::string>& folders, const fs::path& folder) {
  std::error_code error;
  if (fs::is_directory(folder, error) && std::find(folders.begin(), folders.end(), folder.string()) == folders.end())
    folders.push_back(folder.string());
}

// PREFIX/lib/python3.N/{site,dist}-packages, and Debian's PREFIX/lib/python3/dist-packages.
void add_python_prefix(std::vector<std::string>& folders, const std::vector<std::string>& wheels, const fs::path& prefix) {
  for (const char* library : {"lib", "lib64"})
    for (const fs::path& python : folders_starting(prefix / library, "python3"))
      for (const char* packages : {"site-packages", "dist-packages"})
        for (const std::string& wheel : wheels) add_folder(folders, python / packages / wheel);
}

// bin/python3 may be a link (of a virtual environment, of a version manager): both its own prefix and that of what it points to count.
void add_pythons_on_path(std::vector<std::string>& folders, const std::vector<std::string>& wheels) {
  std::istringstream path(variable("PATH"));
  for (std::string bin; std::getline(path, bin, ':');) {
    std::error_code error;
    const fs::path python = fs::path(bin) / "python3";
    if (bin.empty() || !fs::exists(python, error)) continue;
    add_python_prefix(folders, wheels, fs::path(bin).parent_path());
    const fs::path target = fs::canonical(python, error);
    if (!error) add_python_prefix(folders, wheels, target.parent_path().parent_path());
  }
}

}  // namespace

std::vector<std::string> library_folders(const std::vector<std::string>& wheels) {
  std::vector<std::string> folders;
  for (const char* name : {"CUDA_HOME", "CUDA_PATH"})
    if (!variable(name).empty()) add_folder(folders, fs::path(variable(name)) / "lib64");
  add_folder(folders, "/usr/local/cuda/lib64");
  if (!variable("VIRTUAL_ENV").empty()) add_python_prefix(folders, wheels, variable("VIRTUAL_ENV"));
  if (!variable("CONDA_PREFIX").empty()) {
    add_folder(folders, fs::path(variable("CONDA_PREFIX")) / "lib");
    add_python_prefix(folders, wheels, variable("CONDA_PREFIX"));
  }
  add_pythons_on_path(folders, wheels);
  if (!variable("HOME").empty()) add_python_prefix(folders, wheels, fs::path(variable("HOME")) / ".local");
  add_python_prefix(folders, wheels, "/usr/local");
  add_python_prefix(folders, wheels, "/usr");
  return folders;
}

}  // namespace tinyllama
