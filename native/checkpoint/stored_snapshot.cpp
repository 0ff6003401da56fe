#include "native/checkpoint/stored_snapshot.h"

#include <algorithm>

#include "native/checkpoint/intersection.h"

namespace tinyllama {

StoredSnapshot::StoredSnapshot(const std::vector<StoredFile>& files, std::vector<StoredRange> stored, const std::vector<WantedRange>& wanted) {
  for (const StoredFile& file : files) files_.push_back(std::make_unique<File>(file.path, File::Mode::read));
  for_stored(std::move(stored), wanted, [&](const StoredRange& source, const ElementRange& elements) {
    const std::int64_t width = bytes_of(source.type);
    const auto bytes = static_cast<std::size_t>(elements.count * width);
    runs_.push_back({bytes_, bytes, source.file, source.file_offset + (elements.offset - source.elements.offset) * width});
    bytes_ += bytes;
  });
}

const std::byte* StoredSnapshot::fetch(std::size_t offset, std::size_t count, std::byte* staging) {
  auto run = std::upper_bound(runs_.begin(), runs_.end(), offset, [](std::size_t at, const Run& next) { return at < next.offset; }) - 1;
  for (std::size_t done = 0; done < count; ++run) {
    const std::size_t within = offset + done - run->offset, part = std::min(run->bytes - within, count - done);
    files_[run->file]->read_at(staging + done, part, run->file_offset + static_cast<std::int64_t>(within));
    done += part;
  }
  return staging;
}

}  // namespace tinyllama
