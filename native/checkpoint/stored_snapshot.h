// A state that lies in files, of any number of ranks, as if it were a snapshot: a StateWriter gathers it into other files.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "native/checkpoint/file.h"
#include "native/checkpoint/state_reader.h"
#include "native/device/memory_snapshot.h"

namespace tinyllama {

class StoredSnapshot final : public MemorySnapshot {
 public:
  // Of the wanted ranges, end to end. Digests are not looked at. Errors as for_stored's.
  StoredSnapshot(const std::vector<StoredFile>& files, std::vector<StoredRange> stored, const std::vector<WantedRange>& wanted);

  Place place() const override { return Place::host; }
  std::size_t bytes() const override { return bytes_; }
  const std::byte* fetch(std::size_t offset, std::size_t count, std::byte* staging) override;

 private:
  // Bytes [offset, offset + bytes) of the snapshot lie in the file from `file_offset` on.
  struct Run {
    std::size_t offset, bytes, file;
    std::int64_t file_offset;
  };

  std::vector<std::unique_ptr<File>> files_;
  std::vector<Run> runs_;
  std::size_t bytes_ = 0;
};

}  // namespace tinyllama
