#include "native/checkpoint/state_reader.h"

#include <algorithm>
#include <memory>
#include <mutex>
#include <utility>

#include "native/checkpoint/file.h"
#include "native/checkpoint/intersection.h"
#include "native/checkpoint/shard_file.h"
#include "native/core/error.h"
#include "native/device/cpu/thread_pool.h"

namespace tinyllama {
namespace {

// A part of a piece that is wanted.
struct Extract {
  std::int64_t offset;  // bytes, within the piece
  ElementRange elements;
};

struct Piece {
  std::size_t file;
  std::int64_t index;
  std::vector<Extract> extracts;
};

// Pieces by file and index, with what is wanted of them.
class ReadPlan {
 public:
  explicit ReadPlan(const std::vector<StoredFile>& files) : files_(files), pieces_(files.size()) {
    for (std::size_t file = 0; file < files.size(); ++file) {
      const std::int64_t count = (files[file].bytes + piece_bytes - 1) / piece_bytes;
      require(files[file].pieces.empty() || static_cast<std::int64_t>(files[file].pieces.size()) == count,
              files[file].path + ": " + std::to_string(files[file].pieces.size()) + " digests for " + std::to_string(count) + " pieces");
      pieces_[file].resize(static_cast<std::size_t>(count));
      for (std::int64_t index = 0; index < count; ++index)
        pieces_[file][static_cast<std::size_t>(index)] = {{file, index, {}}, !files[file].pieces.empty() && index * piece_bytes < files[file].header_bytes};
    }
  }

  // Elements of `range`, all of which lie in `stored`.
  void want(const StoredRange& stored, ElementRange range) {
    const std::int64_t element_bytes = bytes_of(stored.type);
    std::int64_t at = stored.file_offset + (range.offset - stored.elements.offset) * element_bytes;
    require(stored.file < files_.size() && at >= 0 && at % element_bytes == 0 && at + range.count * element_bytes <= files_[stored.file].bytes,
            "a stored range lies outside of its file");
    while (range.count > 0) {
      const std::int64_t index = at / piece_bytes, within = at % piece_bytes;
      const std::int64_t count = std::min(range.count, (piece_bytes - within) / element_bytes);
      auto& [piece, is_read] = pieces_[stored.file][static_cast<std::size_t>(index)];
      is_read = true;
      piece.extracts.push_back({within, {range.kind, range.offset, count}});
      range.offset += count;
      range.count -= count;
      at += count * element_bytes;
    }
  }

  std::vector<Piece> pieces() const {
    std::vector<Piece> all;
    for (const auto& file : pieces_)
      for (const auto& [piece, is_read] : file)
        if (is_read) all.push_back(piece);
    return all;
  }

 private:
  const std::vector<StoredFile>& files_;
  std::vector<std::vector<std::pair<Piece, bool>>> pieces_;
};

void check_piece(const StoredFile& file, std::int64_t index, const Digest& found) {
  const Digest& expected = file.pieces[static_cast<std::size_t>(index)];
  if (found == expected) return;
  const std::int64_t begin = index * piece_bytes, end = std::min(begin + piece_bytes, file.bytes);
  throw Error(file.path + ": bytes " + std::to_string(begin) + " to " + std::to_string(end) + " have sha256 " + to_hex(found) + ", not " +
              to_hex(expected));
}

}  // namespace

void read_state(Device& device, const std::vector<StoredFile>& files, std::vector<StoredRange> stored, const std::vector<WantedRange>& wanted,
                int threads, const ElementSink& sink) {
  ReadPlan plan(files);
  for_stored(std::move(stored), wanted, [&](const StoredRange& source, const ElementRange& elements) { plan.want(source, elements); });
  const std::vector<Piece> pieces = plan.pieces();
  std::vector<std::unique_ptr<File>> open;
  std::int64_t largest = 0;
  for (const StoredFile& file : files) {
    open.push_back(std::make_unique<File>(file.path, File::Mode::read));
    const std::int64_t size = open.back()->size();
    require(size == file.bytes, file.path + " has " + std::to_string(size) + " bytes, not " + std::to_string(file.bytes));
    largest = std::max(largest, std::min(size, piece_bytes));
  }
  ThreadPool pool(static_cast<int>(std::clamp<std::int64_t>(static_cast<std::int64_t>(pieces.size()), 1, threads)));
  std::vector<std::unique_ptr<Buffer>> staging(static_cast<std::size_t>(pool.size()));
  std::mutex handing_on;
  pool.parallel_for(static_cast<std::int64_t>(pieces.size()), [&](std::int64_t item, int thread) {
    const Piece& piece = pieces[static_cast<std::size_t>(item)];
    const StoredFile& file = files[piece.file];
    std::unique_ptr<Buffer>& buffer = staging[static_cast<std::size_t>(thread)];
    if (!buffer) buffer = device.allocate_staging(static_cast<std::size_t>(largest));
    const std::int64_t begin = piece.index * piece_bytes;
    const auto count = static_cast<std::size_t>(std::min(piece_bytes, file.bytes - begin));
    auto* bytes = static_cast<std::byte*>(buffer->data());
    open[piece.file]->read_at(bytes, count, begin);
    if (!file.pieces.empty()) check_piece(file, piece.index, sha256(bytes, count));
    const std::lock_guard lock(handing_on);
    for (const Extract& extract : piece.extracts) sink(extract.elements, bytes + extract.offset);
  });
}

FilePieces hash_file(const std::string& path, int threads) {
  const File file(path, File::Mode::read);
  FilePieces result{file.size(), {}};
  const std::int64_t count = (result.bytes + piece_bytes - 1) / piece_bytes;
  result.pieces.resize(static_cast<std::size_t>(count));
  ThreadPool pool(static_cast<int>(std::clamp<std::int64_t>(count, 1, threads)));
  std::vector<std::vector<std::byte>> buffers(static_cast<std::size_t>(pool.size()));
  pool.parallel_for(count, [&](std::int64_t index, int thread) {
    std::vector<std::byte>& buffer = buffers[static_cast<std::size_t>(thread)];
    const std::int64_t begin = index * piece_bytes;
    const auto bytes = static_cast<std::size_t>(std::min(piece_bytes, result.bytes - begin));
    buffer.resize(std::max(buffer.size(), bytes));
    file.read_at(buffer.data(), bytes, begin);
    result.pieces[static_cast<std::size_t>(index)] = sha256(buffer.data(), bytes);
  });
  return result;
}

}  // namespace tinyllama
