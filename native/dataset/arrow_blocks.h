// Blocks of tokens in an Arrow IPC file, as src/data/PackedDataset.ts writes it, found without reading more than the footer and, of each block that is asked
// for, its batch's header. All offsets are checked against the file before they are followed.
#pragma once
#include <cstdint>
#include <span>
#include <string>

#include "native/dataset/mapped_file.h"

namespace tinyllama {

struct BlockLayout {
  std::size_t block_length = 0;  // tokens in a block
  bool wide = false;             // 32 bits a token, else 16
  bool boundaries = false;       // a column of document starts follows
  bool lengths = false;          // a column of lengths follows
};

struct BlockView {
  const std::uint8_t* tokens = nullptr;  // block_length of them
  std::size_t length = 0;                // tokens before the padding
  // Where documents begin, other than at 0: ascending positions, below block_length, of 32 bits. None without the column.
  const std::uint8_t* starts = nullptr;
  std::size_t start_count = 0;
};

class ArrowBlocks {
 public:
  // Throws Error when the file is no Arrow file of this layout.
  ArrowBlocks(const std::string& path, const BlockLayout& layout);

  std::uint64_t blocks() const { return blocks_; }
  const BlockLayout& layout() const { return layout_; }
  const std::string& path() const { return file_.path(); }
  // Throws Error when the file contradicts itself there; `index` is below blocks().
  BlockView block(std::uint64_t index) const;
  void prefetch(std::uint64_t index) const;

 private:
  struct Batch {
    std::uint64_t rows;
    std::uint64_t tokens, lengths;  // offsets in the file; 0 where there is no such column
    std::uint64_t boundary_offsets, boundaries, boundary_count;
  };
  Batch batch(std::uint64_t index) const;
  void find_starts(BlockView& view, const Batch& found, std::uint64_t row, std::uint64_t index) const;
  // A little-endian number at `offset` of the file.
  template <typename T>
  T number(std::uint64_t offset) const;
  // Offset of a field of a flatbuffers table, 0 for an absent one.
  std::uint64_t field(std::uint64_t table, unsigned index) const;
  std::uint64_t follow(std::uint64_t offset) const { return offset + number<std::uint32_t>(offset); }
  std::uint64_t token_bytes() const { return layout_.block_length * (layout_.wide ? 4 : 2); }
  [[noreturn]] void corrupt(const std::string& what) const;

  MappedFile file_;
  BlockLayout layout_;
  std::uint64_t batch_list_ = 0, batch_count_ = 0;  // of the footer's Block structs
  std::uint64_t rows_per_batch_ = 0, blocks_ = 0;
};

}  // namespace tinyllama
