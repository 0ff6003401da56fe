#include "native/dataset/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "native/core/error.h"

namespace tinyllama {

MappedFile::MappedFile(const std::string& path) : path_(path) {
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  require(descriptor >= 0, path + ": " + std::strerror(errno));
  struct stat status {};
  const bool known = fstat(descriptor, &status) == 0;
  size_ = known ? static_cast<std::size_t>(status.st_size) : 0;
  void* mapped = size_ == 0 ? nullptr : mmap(nullptr, size_, PROT_READ, MAP_SHARED, descriptor, 0);
  const int error = errno;
  close(descriptor);
  require(known && mapped != MAP_FAILED, path + ": " + std::strerror(error));
  data_ = static_cast<const std::uint8_t*>(mapped);
  // Blocks are read in random order: reading ahead of each would bring pages that nobody wants.
  if (size_ > 0) madvise(mapped, size_, MADV_RANDOM);
}

MappedFile::~MappedFile() {
  if (size_ > 0) munmap(const_cast<std::uint8_t*>(data_), size_);
}

void MappedFile::prefetch(std::size_t offset, std::size_t length) const {
  if (offset >= size_) return;
  static const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const std::size_t begin = offset / page * page;
  madvise(const_cast<std::uint8_t*>(data_) + begin, std::min(size_, offset + length) - begin, MADV_WILLNEED);
}

}  // namespace tinyllama
