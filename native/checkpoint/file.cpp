// By the names of 64 bits, as Node calls them: test/native/faults counts these.
#define _FILE_OFFSET_BITS 64
#include "native/checkpoint/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "native/core/error.h"

namespace tinyllama {
namespace {

std::string code_of(int error) {
  switch (error) {
    case ENOSPC: return "ENOSPC";
    case EDQUOT: return "EDQUOT";
    case EFBIG: return "EFBIG";
    case EIO: return "EIO";
    case EROFS: return "EROFS";
    case EACCES: return "EACCES";
    case ENOENT: return "ENOENT";
    case EMFILE: return "EMFILE";
    default: return "errno " + std::to_string(error);
  }
}

// One call moves less than 2 GiB whatever it is asked for.
constexpr std::size_t most = std::size_t{1} << 30;

}  // namespace

void File::fail(const char* call) const {
  throw Error(code_of(errno) + ": " + std::strerror(errno) + ", " + call + " '" + path_ + "'");
}

File::File(std::string path, Mode mode) : path_(std::move(path)) {
  descriptor_ = open(path_.c_str(), mode == Mode::read ? O_RDONLY | O_CLOEXEC : O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (descriptor_ < 0) fail("open");
}

File::~File() { close(descriptor_); }

std::int64_t File::size() const {
  struct stat status {};
  if (fstat(descriptor_, &status) != 0) fail("stat");
  return status.st_size;
}

void File::reserve([[maybe_unused]] std::int64_t bytes) {
#if defined(__linux__)
  if (bytes > 0 && fallocate(descriptor_, 0, 0, bytes) != 0 && (errno == ENOSPC || errno == EDQUOT)) fail("allocate");
#endif
}

void File::write_at(const void* bytes, std::size_t count, std::int64_t offset) {
  const auto* from = static_cast<const std::byte*>(bytes);
  while (count > 0) {
    const ssize_t done = pwrite(descriptor_, from, std::min(count, most), offset);
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) fail("write");
    from += done;
    offset += done;
    count -= static_cast<std::size_t>(done);
  }
}

void File::read_at(void* bytes, std::size_t count, std::int64_t offset) const {
  auto* to = static_cast<std::byte*>(bytes);
  while (count > 0) {
    const ssize_t done = pread(descriptor_, to, std::min(count, most), offset);
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) fail("read");
    if (done == 0) throw Error(path_ + " ends at byte " + std::to_string(offset));
    to += done;
    offset += done;
    count -= static_cast<std::size_t>(done);
  }
}

void File::sync() {
  if (fsync(descriptor_) != 0) fail("fsync");
}

}  // namespace tinyllama
