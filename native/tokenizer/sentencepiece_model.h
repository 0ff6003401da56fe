// tokenizer.model: SentencePiece's ModelProto (sentencepiece_model.proto), as much of it as says what a BPE tokenizer does.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace tinyllama {

struct SentencePieceModel {
  std::vector<std::string> pieces;
  std::vector<float> scores;
  std::vector<std::uint8_t> types;  // SentencePiece's: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte
  bool add_dummy_prefix = true;
};

// Reads untrusted bytes. Throws Error, with the byte where it stopped, for what is no ModelProto; and for what this engine would encode otherwise than
// SentencePiece: a model that is not BPE or has no byte fallback, a normalizer that changes text, ▁ behind words, user-defined pieces.
SentencePieceModel read_sentencepiece_model(std::span<const std::uint8_t> file);

}  // namespace tinyllama
