#include "native/dataset/arrow_blocks.h"

#include <cstring>

#include "native/core/error.h"

// The layout: Arrow columnar format 1.5, "IPC file format", and the schemas File.fbs and Message.fbs. Flatbuffers: a table begins with an
// int32 that leads back to its vtable, which holds its own size, the table's, and the fields' offsets, as uint16s.
namespace tinyllama {

namespace {

constexpr char magic[] = "ARROW1";
constexpr std::size_t magic_bytes = 6;
// Footer: version, schema, dictionaries, recordBatches. Block: offset int64, metaDataLength int32, padding, bodyLength int64.
constexpr unsigned footer_batches = 3;
constexpr std::uint64_t block_bytes = 24;
// Message: version, header_type, header, bodyLength. RecordBatch: length, nodes, buffers, compression.
constexpr unsigned message_header_type = 1, message_header = 2;
constexpr unsigned batch_length = 0, batch_buffers = 2, batch_compression = 3;
constexpr std::uint8_t record_batch_type = 3;
// A buffer is offset int64, length int64. Those of a fixed-size list: its validity, its items' validity, its items.
constexpr std::uint64_t buffer_bytes = 16;
// Those of a list: its validity, its offsets, its items' validity, its items.
constexpr std::uint64_t token_buffer = 2, list_buffers = 3, boundary_buffers = 4, boundary_offsets_buffer = 4, boundary_buffer = 6;

}  // namespace

void ArrowBlocks::corrupt(const std::string& what) const { throw Error(file_.path() + ": " + what); }

template <typename T>
T ArrowBlocks::number(std::uint64_t offset) const {
  if (offset > file_.size() || file_.size() - offset < sizeof(T)) corrupt("an offset leads outside the file");
  T value;
  std::memcpy(&value, file_.data() + offset, sizeof value);
  return value;
}

std::uint64_t ArrowBlocks::field(std::uint64_t table, unsigned index) const {
  const std::int64_t vtable = static_cast<std::int64_t>(table) - number<std::int32_t>(table);
  if (vtable < 0) corrupt("an offset leads outside the file");
  const auto at = static_cast<std::uint64_t>(vtable);
  const std::uint64_t entry = 4 + 2 * index;
  if (entry + 2 > number<std::uint16_t>(at)) return 0;
  const std::uint16_t offset = number<std::uint16_t>(at + entry);
  return offset == 0 ? 0 : table + offset;
}

ArrowBlocks::ArrowBlocks(const std::string& path, const BlockLayout& layout) : file_(path), layout_(layout) {
  require(layout.block_length > 0, "a block has at least one token");
  const std::uint64_t size = file_.size();
  const auto is_magic = [&](std::uint64_t at) { return std::memcmp(file_.data() + at, magic, magic_bytes) == 0; };
  if (size < 3 * magic_bytes || !is_magic(0) || !is_magic(size - magic_bytes)) corrupt("this is not a whole Arrow file: its ARROW1 marks are missing");
  const std::uint64_t footer_size = number<std::uint32_t>(size - magic_bytes - 4);
  if (footer_size + magic_bytes + 4 > size) corrupt("the footer is longer than the file");
  const std::uint64_t footer = follow(size - magic_bytes - 4 - footer_size);
  const std::uint64_t batches = field(footer, footer_batches);
  if (batches == 0) return;
  const std::uint64_t list = follow(batches);
  batch_count_ = number<std::uint32_t>(list);
  batch_list_ = list + 4;
  if (batch_count_ > (size - list) / block_bytes) corrupt("the footer lists more batches than it has room for");
  if (batch_count_ == 0) return;
  rows_per_batch_ = batch(0).rows;
  const std::uint64_t last = batch_count_ == 1 ? rows_per_batch_ : batch(batch_count_ - 1).rows;
  if (last > rows_per_batch_) corrupt("its last batch is longer than the others");
  if (rows_per_batch_ > 0 && batch_count_ > (std::uint64_t{1} << 53) / rows_per_batch_) corrupt("it claims too many blocks");
  blocks_ = rows_per_batch_ * (batch_count_ - 1) + last;
}

ArrowBlocks::Batch ArrowBlocks::batch(std::uint64_t index) const {
  const std::uint64_t entry = batch_list_ + index * block_bytes;
  const auto offset = number<std::uint64_t>(entry);
  const std::uint64_t metadata = number<std::uint32_t>(entry + 8);
  const auto body_size = number<std::uint64_t>(entry + 16);
  const std::uint64_t size = file_.size();
  if (offset > size || metadata > size - offset || body_size > size - offset - metadata) corrupt("batch " + std::to_string(index) + " lies outside the file");
  // The message begins behind a mark of four 0xFF bytes and its size; the oldest files lack the mark.
  const std::uint64_t start = offset + (number<std::uint32_t>(offset) == 0xFFFFFFFFu ? 8 : 4);
  const std::uint64_t message = follow(start);
  const std::uint64_t type = field(message, message_header_type), header_field = field(message, message_header);
  if (type == 0 || header_field == 0 || number<std::uint8_t>(type) != record_batch_type) corrupt("batch " + std::to_string(index) + " is no record batch");
  const std::uint64_t header = follow(header_field);
  if (field(header, batch_compression) != 0) corrupt("its batches are compressed");
  const std::uint64_t length = field(header, batch_length), buffers_field = field(header, batch_buffers);
  const auto rows = length == 0 ? 0 : number<std::uint64_t>(length);
  if (buffers_field == 0) corrupt("batch " + std::to_string(index) + " has no buffers");
  const std::uint64_t buffers = follow(buffers_field);
  const std::uint64_t expected = list_buffers + (layout_.boundaries ? boundary_buffers : 0) + (layout_.lengths ? 2 : 0);
  if (number<std::uint32_t>(buffers) != expected) corrupt("its columns are not those of such a dataset");
  const auto buffer_size = [&](std::uint64_t which) { return number<std::uint64_t>(buffers + 4 + which * buffer_bytes + 8); };
  const auto buffer = [&](std::uint64_t which, std::uint64_t bytes) {
    const std::uint64_t at = buffers + 4 + which * buffer_bytes;
    const auto begin = number<std::uint64_t>(at), held = number<std::uint64_t>(at + 8);
    if (begin > body_size || held > body_size - begin || held < bytes) corrupt("batch " + std::to_string(index) + " is shorter than its blocks");
    return offset + metadata + begin;
  };
  if (rows > size / token_bytes()) corrupt("batch " + std::to_string(index) + " claims more blocks than the file has room for");
  Batch found{rows, buffer(token_buffer, rows * token_bytes()), layout_.lengths ? buffer(expected - 1, rows * 4) : 0, 0, 0, 0};
  // Arrow aligns buffers to 8 bytes; tokens are read as numbers where they lie.
  if (found.tokens % (layout_.wide ? 4 : 2) != 0) corrupt("batch " + std::to_string(index) + " is not aligned");
  if (layout_.boundaries) {
    found.boundary_offsets = buffer(boundary_offsets_buffer, rows == 0 ? 0 : (rows + 1) * 4);
    found.boundary_count = buffer_size(boundary_buffer) / 4;
    found.boundaries = buffer(boundary_buffer, found.boundary_count * 4);
  }
  return found;
}

void ArrowBlocks::find_starts(BlockView& view, const Batch& found, std::uint64_t row, std::uint64_t index) const {
  const std::uint64_t begin = number<std::uint32_t>(found.boundary_offsets + 4 * row), end = number<std::uint32_t>(found.boundary_offsets + 4 * row + 4);
  const std::string place = "block " + std::to_string(index);
  if (begin > end || end > found.boundary_count) corrupt(place + "'s document starts lie outside their column");
  std::uint64_t before = 0;
  for (std::uint64_t at = begin; at < end; ++at) {
    const std::uint64_t start = number<std::uint32_t>(found.boundaries + 4 * at);
    if (start <= before || start >= layout_.block_length) corrupt(place + "'s document starts are not ascending positions in the block");
    before = start;
  }
  view.starts = file_.data() + found.boundaries + 4 * begin;
  view.start_count = end - begin;
}

BlockView ArrowBlocks::block(std::uint64_t index) const {
  if (index >= blocks_) corrupt("no block " + std::to_string(index) + " of " + std::to_string(blocks_));
  const std::uint64_t which = index / rows_per_batch_, row = index % rows_per_batch_;
  const Batch found = batch(which);
  if (row >= found.rows || (which + 1 < batch_count_ && found.rows != rows_per_batch_)) corrupt("batch " + std::to_string(which) + " has another length than the first");
  const std::size_t length = found.lengths == 0 ? layout_.block_length : number<std::uint32_t>(found.lengths + 4 * row);
  if (length > layout_.block_length) corrupt("block " + std::to_string(index) + " is longer than a block");
  BlockView view{file_.data() + found.tokens + row * token_bytes(), length};
  if (layout_.boundaries) find_starts(view, found, row, index);
  return view;
}

void ArrowBlocks::prefetch(std::uint64_t index) const {
  const Batch found = batch(index / rows_per_batch_);
  file_.prefetch(found.tokens + index % rows_per_batch_ * token_bytes(), token_bytes());
}

}  // namespace tinyllama
