// A file in memory, read-only: pages come as they are touched.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace tinyllama {

class MappedFile {
 public:
  // Throws Error, with the path and the system's reason.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::uint8_t* data() const { return data_; }
  std::size_t size() const { return size_; }
  const std::string& path() const { return path_; }

  // Asks for the pages of [offset, offset + length) before they are needed; returns at once.
  void prefetch(std::size_t offset, std::size_t length) const;

 private:
  std::string path_;
  const std::uint8_t* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace tinyllama
