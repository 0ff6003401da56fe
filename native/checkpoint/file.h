// A file by its descriptor: positional reads and writes of whole runs of bytes. Errors are told as Node tells them: code, reason, call, path.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace tinyllama {

class File {
 public:
  enum class Mode : std::uint8_t { read, write };  // write: created, or emptied
  File(std::string path, Mode mode);
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  const std::string& path() const { return path_; }
  std::int64_t size() const;
  // Takes the room for so many bytes at once where the file system can, so that a full disk shows before any is written.
  void reserve(std::int64_t bytes);
  void write_at(const void* bytes, std::size_t count, std::int64_t offset);
  void read_at(void* bytes, std::size_t count, std::int64_t offset) const;
  // Makes what was written durable.
  void sync();

 private:
  [[noreturn]] void fail(const char* call) const;

  std::string path_;
  int descriptor_;
};

}  // namespace tinyllama
