#include "native/tokenizer/sentencepiece_model.h"

#include <bit>
#include <cstddef>
#include <optional>

#include "native/core/error.h"

namespace tinyllama {

namespace {

enum class Wire : std::uint8_t { varint = 0, fixed64 = 1, bytes = 2, fixed32 = 5 };

struct Field {
  std::uint64_t number;
  Wire wire;
  std::uint64_t value;                  // of varints and fixed widths
  std::span<const std::uint8_t> bytes;  // of length-delimited fields
};

// The fields of one protobuf message, one after the other.
class Reader {
 public:
  Reader(std::span<const std::uint8_t> message, const std::uint8_t* file) : at_(message.data()), end_(at_ + message.size()), file_(file) {}

  std::optional<Field> next() {
    if (at_ == end_) return std::nullopt;
    const std::uint64_t tag = varint();
    Field field{tag >> 3, static_cast<Wire>(tag & 7), 0, {}};
    switch (field.wire) {
      case Wire::varint: field.value = varint(); break;
      case Wire::fixed64: field.value = fixed(8); break;
      case Wire::fixed32: field.value = fixed(4); break;
      case Wire::bytes: {
        const std::uint64_t length = varint();
        check(length <= static_cast<std::uint64_t>(end_ - at_), "a field that is longer than the file");
        field.bytes = {at_, static_cast<std::size_t>(length)};
        at_ += length;
        break;
      }
      default: check(false, "a field of unknown form");
    }
    check(field.number != 0, "a field without a number");
    return field;
  }

  Reader inside(const Field& field) const {
    check(field.wire == Wire::bytes, "a number where a message belongs");
    return {field.bytes, file_};
  }

  void check(bool good, const char* what) const {
    if (!good) throw Error(std::string("not a SentencePiece model: ") + what + ", before byte " + std::to_string(at_ - file_));
  }

 private:
  std::uint64_t varint() {
    std::uint64_t value = 0;
    for (int shift = 0; shift < 70; shift += 7) {
      check(at_ < end_, "the file ends inside a number");
      const std::uint8_t byte = *at_++;
      value |= static_cast<std::uint64_t>(byte & 0x7F) << (shift < 64 ? shift : 63);
      if (byte < 0x80) return value;
    }
    check(false, "a number of more than ten bytes");
    return 0;
  }
  std::uint64_t fixed(int size) {
    check(end_ - at_ >= size, "the file ends inside a number");
    std::uint64_t value = 0;
    for (int i = 0; i < size; ++i) value |= static_cast<std::uint64_t>(at_[i]) << 8 * i;
    at_ += size;
    return value;
  }

  const std::uint8_t* at_;
  const std::uint8_t* end_;
  const std::uint8_t* file_;
};

void read_piece(Reader reader, SentencePieceModel& model) {
  std::string text;
  float score = 0;
  std::uint64_t type = 1;
  while (const auto field = reader.next()) {
    if (field->number == 1) {
      reader.check(field->wire == Wire::bytes, "a piece without text");
      text.assign(reinterpret_cast<const char*>(field->bytes.data()), field->bytes.size());
    } else if (field->number == 2) {
      reader.check(field->wire == Wire::fixed32, "a score that is no float");
      score = std::bit_cast<float>(static_cast<std::uint32_t>(field->value));
    } else if (field->number == 3) {
      reader.check(field->wire == Wire::varint && field->value <= 6, "an unknown type of piece");
      type = field->value;
    }
  }
  model.pieces.push_back(std::move(text));
  model.scores.push_back(score);
  model.types.push_back(static_cast<std::uint8_t>(type));
}

struct Trainer {
  std::uint64_t model_type = 1;  // unigram
  bool byte_fallback = false;
  bool space_behind_words = false;
};

Trainer read_trainer(Reader reader) {
  Trainer trainer;
  while (const auto field = reader.next()) {
    if (field->number == 3) trainer.model_type = field->value;
    if (field->number == 24) trainer.space_behind_words = field->value != 0;
    if (field->number == 35) trainer.byte_fallback = field->value != 0;
  }
  return trainer;
}

struct Normalizer {
  bool has_map = false;
  bool add_dummy_prefix = true;
  bool remove_extra_spaces = true;
  bool escape_spaces = true;
};

Normalizer read_normalizer(Reader reader) {
  Normalizer normalizer;
  while (const auto field = reader.next()) {
    if (field->number == 2) normalizer.has_map = !field->bytes.empty();
    if (field->number == 3) normalizer.add_dummy_prefix = field->value != 0;
    if (field->number == 4) normalizer.remove_extra_spaces = field->value != 0;
    if (field->number == 5) normalizer.escape_spaces = field->value != 0;
  }
  return normalizer;
}

}  // namespace

SentencePieceModel read_sentencepiece_model(std::span<const std::uint8_t> file) {
  SentencePieceModel model;
  Trainer trainer;
  Normalizer normalizer;
  Reader reader(file, file.data());
  while (const auto field = reader.next()) {
    if (field->number == 1) read_piece(reader.inside(*field), model);
    if (field->number == 2) trainer = read_trainer(reader.inside(*field));
    if (field->number == 3) normalizer = read_normalizer(reader.inside(*field));
  }
  require(!model.pieces.empty(), "not a SentencePiece model: it has no pieces");
  require(trainer.model_type == 2, "the SentencePiece model is of type " + std::to_string(trainer.model_type) +
                                       " (1 unigram, 3 word, 4 char); only BPE, type 2, is the Llama family's");
  require(trainer.byte_fallback, "the SentencePiece model has no byte fallback, so it is none of the Llama family");
  require(!trainer.space_behind_words, "the SentencePiece model puts spaces behind words, which is not supported");
  require(!normalizer.has_map && !normalizer.remove_extra_spaces && normalizer.escape_spaces,
          "the SentencePiece model normalizes text (a character map, or spaces removed), which is not supported");
  for (std::size_t id = 0; id < model.types.size(); ++id) {
    require(model.types[id] != 4, "piece " + std::to_string(id) + " (\"" + model.pieces[id] + "\") is user defined: SentencePiece would look for it in the text, which is not supported");
    require(model.types[id] != 5, "piece " + std::to_string(id) + " (\"" + model.pieces[id] + "\") is of the type unused, which is not supported");
  }
  model.add_dummy_prefix = normalizer.add_dummy_prefix;
  return model;
}

}  // namespace tinyllama
