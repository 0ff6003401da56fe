#include "native/checkpoint/state_writer.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "native/checkpoint/file.h"
#include "native/core/error.h"
#include "native/device/cpu/thread_pool.h"

namespace tinyllama {
namespace {

std::int64_t pieces_of(std::int64_t bytes) { return (bytes + piece_bytes - 1) / piece_bytes; }

// The bytes [begin, begin + count) of the file: where they lie in the snapshot, or gathered in `staging`. `scratch` holds what is fetched meanwhile.
const std::byte* piece_of(const ShardFile& file, MemorySnapshot& snapshot, std::int64_t begin, std::int64_t count, std::byte* staging, std::byte* scratch) {
  const std::int64_t end = begin + count;
  if (const auto header = static_cast<std::int64_t>(file.header.size()); begin < header)
    std::memcpy(staging, file.header.data() + begin, static_cast<std::size_t>(std::min(header, end) - begin));
  for (const FileSection& section : file.sections) {
    const std::int64_t from = std::max(begin, section.file_offset);
    const std::int64_t to = std::min(end, section.file_offset + section.bytes());
    if (from >= to) continue;
    const auto source = static_cast<std::size_t>(section.snapshot_offset + (from - section.file_offset)), bytes = static_cast<std::size_t>(to - from);
    if (from == begin && to == end) return snapshot.fetch(source, bytes, staging);
    std::memcpy(staging + (from - begin), snapshot.fetch(source, bytes, scratch), bytes);
  }
  return staging;
}

}  // namespace

StateWriter::StateWriter(std::shared_ptr<Device> device, std::shared_ptr<MemorySnapshot> snapshot, std::vector<ShardFile> files, int threads, Done done)
    : device_(std::move(device)), snapshot_(std::move(snapshot)), files_(std::move(files)), threads_(threads), done_(std::move(done)) {
  thread_ = std::thread([this] { run(); });
}

StateWriter::~StateWriter() {
  cancel();
  if (thread_.joinable()) thread_.join();
}

const std::vector<WrittenFile>& StateWriter::wait() {
  if (thread_.joinable()) thread_.join();
  if (failure_) std::rethrow_exception(failure_);
  return written_;
}

void StateWriter::run() {
  try {
    write_files();
  } catch (...) {
    failure_ = std::current_exception();
  }
  snapshot_.reset();
  if (done_) done_();
}

void StateWriter::write_files() {
  struct Piece {
    std::size_t file;
    std::int64_t index;
  };
  std::vector<Piece> pieces;
  std::vector<std::unique_ptr<File>> open;
  for (std::size_t i = 0; i < files_.size(); ++i) {
    const ShardFile& file = files_[i];
    open.push_back(std::make_unique<File>(file.path, File::Mode::write));
    open.back()->reserve(file.bytes);
    const std::int64_t count = pieces_of(file.bytes);
    written_.push_back({file.path, file.bytes, std::vector<Digest>(static_cast<std::size_t>(count))});
    for (std::int64_t index = 0; index < count; ++index) pieces.push_back({i, index});
  }
  ThreadPool pool(static_cast<int>(std::clamp<std::int64_t>(static_cast<std::int64_t>(pieces.size()), 1, threads_)));
  struct Staging {
    std::unique_ptr<Buffer> piece, scratch;
  };
  std::vector<Staging> staging(static_cast<std::size_t>(pool.size()));
  std::int64_t largest = 0;
  for (const ShardFile& file : files_) largest = std::max(largest, std::min(file.bytes, piece_bytes));
  pool.parallel_for(static_cast<std::int64_t>(pieces.size()), [&](std::int64_t item, int thread) {
    require(!cancelled_, "the save was cancelled");
    const auto [file, index] = pieces[static_cast<std::size_t>(item)];
    Staging& own = staging[static_cast<std::size_t>(thread)];
    const std::int64_t begin = index * piece_bytes, count = std::min(piece_bytes, files_[file].bytes - begin);
    for (std::unique_ptr<Buffer>* buffer : {&own.piece, &own.scratch})
      if (!*buffer) *buffer = device_->allocate_staging(static_cast<std::size_t>(largest));
    const std::byte* bytes = piece_of(files_[file], *snapshot_, begin, count, static_cast<std::byte*>(own.piece->data()),
                                      static_cast<std::byte*>(own.scratch->data()));
    written_[file].pieces[static_cast<std::size_t>(index)] = sha256(bytes, static_cast<std::size_t>(count));
    open[file]->write_at(bytes, static_cast<std::size_t>(count), begin);
  });
  staging.clear();
  snapshot_.reset();
  for (const std::unique_ptr<File>& file : open) file->sync();
}

}  // namespace tinyllama
