// Reads ranges of a state from the files of any number of ranks: intersects what is wanted with what is stored, and reads, checks and hands on the
// pieces in parallel.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "native/checkpoint/sha256.h"
#include "native/checkpoint/state.h"
#include "native/device/device.h"

namespace tinyllama {

struct StoredFile {
  std::string path;
  std::int64_t bytes;
  std::int64_t header_bytes;   // in front of the data: its pieces are checked whatever is wanted
  std::vector<Digest> pieces;  // none: nothing is checked
};

// Elements of a type, from byte `file_offset` of the file on.
struct StoredRange {
  std::size_t file;
  std::int64_t file_offset;
  ElementRange elements;
  DataType type;
};

struct WantedRange {
  ElementRange elements;
  DataType type;
};

// Takes elements in; called by several threads, one at a time. The values are the callee's for the time of the call, in staging memory of the device.
using ElementSink = std::function<void(const ElementRange& elements, const void* values)>;

// Throws Error naming the file and the bytes that are damaged or missing, or the elements that no file has, or not of
// the type that is wanted. The sink may have been called by then.
void read_state(Device& device, const std::vector<StoredFile>& files, std::vector<StoredRange> stored, const std::vector<WantedRange>& wanted,
                int threads, const ElementSink& sink);

// The digests of all pieces of a file.
struct FilePieces {
  std::int64_t bytes;
  std::vector<Digest> pieces;
};
FilePieces hash_file(const std::string& path, int threads);

}  // namespace tinyllama
