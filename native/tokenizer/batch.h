// Many documents to ids on several threads, straight from one buffer of bytes.
#pragma once
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "native/tokenizer/encoder.h"
#include "native/tokenizer/id_buffer.h"

namespace tinyllama {

template <typename Id>
struct EncodedBatch {
  IdBuffer<Id> ids;                    // of all documents, in order
  std::vector<std::uint32_t> offsets;  // document i has ids [offsets[i], offsets[i + 1])
};

// Bytes [begin, end) of a text.
struct ByteRange {
  std::uint32_t begin, end;
};

// Safe to call from several threads at once. Keeps the encoders, with what they learnt, for the next call. Beyond its result a call holds as many ids
// again while it joins the parts.
template <typename Id>
class BatchEncoder {
 public:
  explicit BatchEncoder(std::shared_ptr<const Vocabulary> vocabulary) : vocabulary_(std::move(vocabulary)) {}

  const Vocabulary& vocabulary() const { return *vocabulary_; }

  std::vector<std::int32_t> encode(std::span<const std::uint8_t> document, const EncodeOptions& options);

  // Document i is text [offsets[i], offsets[i + 1]); `offsets` has one entry more than there are documents. The same ids on any number of threads: long
  // documents are cut behind line feeds, where the vocabulary has no piece across one. Throws Error for offsets that descend or leave the text, for
  // threads outside 1..1024, and for 1 GiB of text or more.
  EncodedBatch<Id> encode(std::span<const std::uint8_t> text, std::span<const std::uint32_t> offsets, const EncodeOptions& options, int threads);

  // The same for documents that need not lie end to end, nor in order. Throws Error for ranges that leave the text.
  EncodedBatch<Id> encode(std::span<const std::uint8_t> text, std::span<const ByteRange> documents, const EncodeOptions& options, int threads);

 private:
  std::unique_ptr<Encoder<Id>> borrow();
  void give_back(std::unique_ptr<Encoder<Id>> encoder);

  std::shared_ptr<const Vocabulary> vocabulary_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Encoder<Id>>> idle_;
};

extern template class BatchEncoder<std::uint16_t>;
extern template class BatchEncoder<std::uint32_t>;

}  // namespace tinyllama
