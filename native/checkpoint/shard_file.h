// The layout of one rank's file of a checkpoint: safetensors, with all or a part of the state's tensors, in the type that the device has
// them in.
//
//   u64 length of the JSON | JSON, padded with spaces so that the data begin at a multiple of 4096 bytes | the tensors, in the flat order
//
// A tensor that is whole has its name and shape. Of one that lies with several ranks, each has a run [begin, end) of its elements in C order, as
// a vector named "name[begin:end]". Moments are named first_moment.NAME and second_moment.NAME.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "native/checkpoint/state.h"
#include "native/model/config.h"

namespace tinyllama {

// Files are hashed in pieces of so many bytes; the last of a file may be shorter.
constexpr std::int64_t piece_bytes = std::int64_t{16} << 20;

// Elements that lie end to end in the file, and in the snapshot.
struct FileSection {
  ElementRange elements;
  DataType type;
  std::int64_t file_offset;
  std::int64_t snapshot_offset;  // bytes

  std::int64_t bytes() const { return elements.count * bytes_of(type); }
};

struct ShardFile {
  std::string path;
  std::string header;  // all in front of the data
  std::vector<FileSection> sections;
  std::int64_t bytes;  // of the whole file
};

// A file with the elements of these kinds that `held` has. The snapshot is that of all of `held`, in its order. What belongs to no tensor (padding
// between them) is left out.
ShardFile plan_shard_file(std::string path, const ParameterLayout& layout, const std::vector<HeldRange>& held, const std::vector<StateKind>& kinds);

}  // namespace tinyllama
