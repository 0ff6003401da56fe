#include "native/tokenizer/batch.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <string>
#include <thread>

#include "native/core/error.h"

namespace tinyllama {

namespace {

constexpr std::size_t task_bytes = 256 << 10;  // of text that a thread takes at a time
constexpr std::size_t text_limit = std::size_t{1} << 30;

// A document, or a stretch of a long one.
struct Part {
  std::size_t begin, end;
  bool first, last;
};

template <typename Id>
struct Task {
  std::size_t first_part, end_part;
  IdBuffer<Id> ids;
};

std::vector<Part> parts_of(const Vocabulary& vocabulary, std::span<const std::uint8_t> text, std::span<const ByteRange> documents) {
  std::vector<Part> parts;
  parts.reserve(documents.size());
  for (const ByteRange document : documents) {
    const std::size_t document_end = document.end;
    Part part{document.begin, document_end, true, true};
    while (vocabulary.line_feed_is_wall() && document_end - part.begin > 2 * task_bytes) {
      const void* const line_feed = std::memchr(text.data() + part.begin + task_bytes, '\n', document_end - part.begin - task_bytes);
      if (line_feed == nullptr) break;
      const auto cut = static_cast<std::size_t>(static_cast<const std::uint8_t*>(line_feed) - text.data()) + 1;
      if (cut == document_end) break;
      parts.push_back({part.begin, cut, part.first, false});
      part = {cut, document_end, false, true};
    }
    parts.push_back(part);
  }
  return parts;
}

template <typename Id>
std::vector<Task<Id>> tasks_of(const std::vector<Part>& parts) {
  std::vector<Task<Id>> tasks;
  std::size_t bytes = 0;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    if (tasks.empty() || bytes >= task_bytes || i - tasks.back().first_part >= 4096) {
      tasks.push_back({i, i, {}});
      bytes = 0;
    }
    tasks.back().end_part = i + 1;
    bytes += parts[i].end - parts[i].begin;
  }
  return tasks;
}

// Calls body on `threads` threads at once, the calling one among them. Rethrows an exception of one when all have ended.
template <typename Body>
void on_threads(std::size_t threads, Body body) {
  std::vector<std::exception_ptr> errors(threads);
  const auto guarded = [&](std::size_t thread) {
    try {
      body();
    } catch (...) {
      errors[thread] = std::current_exception();
    }
  };
  {
    std::vector<std::jthread> others;
    others.reserve(threads);
    for (std::size_t thread = 1; thread < threads; ++thread) others.emplace_back(guarded, thread);
    guarded(0);
  }
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

}  // namespace

template <typename Id>
std::vector<std::int32_t> BatchEncoder<Id>::encode(std::span<const std::uint8_t> document, const EncodeOptions& options) {
  auto encoder = borrow();
  auto ids = encoder->encode(document, options);
  give_back(std::move(encoder));
  return ids;
}

template <typename Id>
EncodedBatch<Id> BatchEncoder<Id>::encode(std::span<const std::uint8_t> text, std::span<const std::uint32_t> offsets, const EncodeOptions& options,
                                          int threads) {
  require(!offsets.empty() && std::is_sorted(offsets.begin(), offsets.end()) && offsets.back() <= text.size(),
          "the offsets of a batch are one more than its documents, ascend, and end inside the text");
  std::vector<ByteRange> documents;
  documents.reserve(offsets.size() - 1);
  for (std::size_t i = 0; i + 1 < offsets.size(); ++i) documents.push_back({offsets[i], offsets[i + 1]});
  return encode(text, documents, options, threads);
}

template <typename Id>
EncodedBatch<Id> BatchEncoder<Id>::encode(std::span<const std::uint8_t> text, std::span<const ByteRange> documents, const EncodeOptions& options,
                                          int threads) {
  require(text.size() < text_limit, "a batch of " + std::to_string(text.size()) + " bytes is too large; the limit is 1 GiB");
  require(threads >= 1 && threads <= 1024, "a batch is encoded on 1 to 1024 threads, not " + std::to_string(threads));
  require(std::ranges::all_of(documents, [&](ByteRange range) { return range.begin <= range.end && range.end <= text.size(); }),
          "the documents of a batch lie inside the text");
  const std::vector<Part> parts = parts_of(*vocabulary_, text, documents);
  std::vector<Task<Id>> tasks = tasks_of<Id>(parts);
  std::vector<std::uint32_t> counts(parts.size());
  const std::size_t used = std::max<std::size_t>(1, std::min<std::size_t>(static_cast<std::size_t>(threads), tasks.size()));

  std::atomic<std::size_t> next = 0;
  on_threads(used, [&] {
    auto encoder = borrow();
    for (std::size_t i = next++; i < tasks.size(); i = next++) {
      Task<Id>& task = tasks[i];
      for (std::size_t p = task.first_part; p < task.end_part; ++p) {
        const Part& part = parts[p];
        const std::size_t before = task.ids.size();
        encoder->encode(text.subspan(part.begin, part.end - part.begin),
                        {.add_bos = options.add_bos && part.first,
                         .add_eos = options.add_eos && part.last,
                         .dummy_prefix = options.dummy_prefix && part.first},
                        task.ids);
        counts[p] = static_cast<std::uint32_t>(task.ids.size() - before);
      }
    }
    give_back(std::move(encoder));
  });

  EncodedBatch<Id> batch;
  batch.offsets.reserve(documents.size() + 1);
  std::size_t total = 0;
  for (std::size_t p = 0; p < parts.size(); ++p) {
    if (parts[p].first) batch.offsets.push_back(static_cast<std::uint32_t>(total));
    total += counts[p];
    require(total <= UINT32_MAX, "a batch has more than 2^32 ids");
  }
  batch.offsets.push_back(static_cast<std::uint32_t>(total));

  std::vector<Id*> places(tasks.size());
  Id* place = batch.ids.make_room(total);
  for (std::size_t i = 0; i < tasks.size(); ++i) {
    places[i] = place;
    place += tasks[i].ids.size();
  }
  batch.ids.set_end(place);
  next = 0;
  on_threads(used, [&] {
    for (std::size_t i = next++; i < tasks.size(); i = next++) {
      const IdBuffer<Id> ids = std::move(tasks[i].ids);
      if (ids.size() > 0) std::memcpy(places[i], ids.ids().data(), ids.size() * sizeof(Id));
    }
  });
  return batch;
}

template <typename Id>
std::unique_ptr<Encoder<Id>> BatchEncoder<Id>::borrow() {
  {
    const std::lock_guard lock(mutex_);
    if (!idle_.empty()) {
      auto encoder = std::move(idle_.back());
      idle_.pop_back();
      return encoder;
    }
  }
  return std::make_unique<Encoder<Id>>(vocabulary_);
}

template <typename Id>
void BatchEncoder<Id>::give_back(std::unique_ptr<Encoder<Id>> encoder) {
  const std::lock_guard lock(mutex_);
  idle_.push_back(std::move(encoder));
}

template class BatchEncoder<std::uint16_t>;
template class BatchEncoder<std::uint32_t>;

}  // namespace tinyllama
