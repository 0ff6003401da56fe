#include "native/device/host_memory.h"

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <limits>
#include <string>

namespace tinyllama {
namespace {

constexpr std::size_t unlimited = std::numeric_limits<std::size_t>::max();
// Left for whatever else runs on the machine.
constexpr std::size_t reserve = std::size_t{512} << 20;

// The number behind `key` in a file of lines "key number"; unlimited where there is none.
std::size_t number_in(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  std::string word;
  std::size_t number = 0;
  while (file >> word)
    if (word == key && file >> number) return number;
  return unlimited;
}

// The number that is all a file says; unlimited for "max", or no file.
std::size_t number_of(const std::string& path) {
  std::ifstream file(path);
  std::size_t number = 0;
  return file >> number ? number : unlimited;
}

// Of control groups, version 2: the process's own and those around it.
std::size_t available_in_groups() {
  std::ifstream file("/proc/self/cgroup");
  std::size_t least = unlimited;
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("0::/", 0) != 0) continue;
    for (std::string group = line.substr(3);; group = group.substr(0, group.rfind('/'))) {
      const std::string folder = "/sys/fs/cgroup" + group;
      const std::size_t limit = number_of(folder + "/memory.max"), used = number_of(folder + "/memory.current");
      if (limit != unlimited && used != unlimited) {
        // Pages of files go when memory is wanted.
        const std::size_t files = number_in(folder + "/memory.stat", "inactive_file");
        const std::size_t held = files == unlimited ? used : used - std::min(used, files);
        least = std::min(least, limit - std::min(limit, held));
      }
      if (group.empty() || group == "/") break;
    }
  }
  return least;
}

}  // namespace

std::size_t available_host_memory() {
  const std::size_t kibibytes = number_in("/proc/meminfo", "MemAvailable:");
  return std::min(kibibytes == unlimited ? unlimited : kibibytes * 1024, available_in_groups());
}

HostMemory allocate_if_room(std::size_t bytes) {
  const std::size_t available = available_host_memory();
  if (available != unlimited && (available < reserve || available - reserve < bytes)) return nullptr;
  constexpr std::size_t page = 4096;
  return HostMemory(static_cast<std::byte*>(std::aligned_alloc(page, (bytes + page) / page * page)));
}

}  // namespace tinyllama
