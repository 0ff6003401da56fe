// The encoder against a second, naive implementation of the same semantics, on fuzzed bytes; equality with SentencePiece itself is tested in
// test/engine/Tokenizer.test.ts. Vocabularies: Llama 2's, read from the npm package, and a toy without the ▁-run rule.
// Usage: tokenizer_test [llama-tokenizer.js [rounds]]
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <random>
#include <sstream>

#include "native/core/error.h"
#include "native/tokenizer/decoder.h"
#include "native/tokenizer/batch.h"
#include "native/tokenizer/encoder.h"
#include "native/tokenizer/sentencepiece_model.h"
#include "native/tokenizer/utf8.h"

using namespace tinyllama;

namespace {

int failures = 0;

void check(bool ok, const std::string& what) {
  if (ok) return;
  if (++failures <= 20) std::printf("FAILED: %s\n", what.c_str());
}

struct Pieces {
  std::vector<std::string> texts;
  std::vector<float> scores;
  std::vector<std::uint8_t> types;

  void add(const std::string& text, float score, PieceType type = PieceType::normal) {
    texts.push_back(text);
    scores.push_back(score);
    types.push_back(static_cast<std::uint8_t>(type));
  }
  void add_special() {
    add("<unk>", 0, PieceType::unknown);
    add("<s>", 0, PieceType::control);
    add("</s>", 0, PieceType::control);
    for (int byte = 0; byte < 256; ++byte) {
      char text[8];
      std::snprintf(text, sizeof text, "<0x%02X>", byte);
      add(text, 0, PieceType::byte);
    }
  }
  std::shared_ptr<const Vocabulary> vocabulary() const { return std::make_shared<const Vocabulary>(texts, scores, types); }
};

// The definition, word for word: one symbol a character, then always the best-scored pair of the whole text, the leftmost of equals.
std::vector<std::int32_t> naive_encode(const Pieces& pieces, const std::map<std::string, std::int32_t>& ids, const std::string& text, bool dummy_prefix) {
  std::vector<std::string> symbols;
  if (dummy_prefix && !text.empty()) symbols.emplace_back("\xE2\x96\x81");
  const auto* at = reinterpret_cast<const std::uint8_t*>(text.data());
  const auto* end = at + text.size();
  while (at < end) {
    const Utf8Character c = decode_utf8(at, end);
    std::string symbol;
    append_utf8(symbol, c.code_point == ' ' ? space_symbol : c.code_point);
    symbols.push_back(symbol);
    at += c.length;
  }
  for (;;) {
    std::size_t best = symbols.size();
    float best_score = 0;
    for (std::size_t i = 0; i + 1 < symbols.size(); ++i) {
      const auto found = ids.find(symbols[i] + symbols[i + 1]);
      if (found == ids.end()) continue;
      const float score = pieces.scores[static_cast<std::size_t>(found->second)];
      if (best == symbols.size() || score > best_score) best = i, best_score = score;
    }
    if (best == symbols.size()) break;
    symbols[best] += symbols[best + 1];
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(best) + 1);
  }
  std::vector<std::int32_t> result;
  for (const std::string& symbol : symbols) {
    const auto found = ids.find(symbol);
    if (found != ids.end()) {
      result.push_back(found->second);
    } else {
      for (const char byte : symbol) result.push_back(3 + static_cast<std::uint8_t>(byte));
    }
  }
  return result;
}

std::string hex(const std::string& text) {
  std::string result;
  char digits[4];
  for (const char byte : text) {
    std::snprintf(digits, sizeof digits, "%02x", static_cast<std::uint8_t>(byte));
    result += digits;
  }
  return result;
}

std::span<const std::uint8_t> bytes_of(const std::string& text) { return {reinterpret_cast<const std::uint8_t*>(text.data()), text.size()}; }

class Fuzz {
 public:
  Fuzz(const Pieces& pieces, unsigned seed) : pieces_(pieces), random_(seed) {}

  std::string text() {
    std::string result;
    const std::size_t parts = below(24);
    const std::size_t kind = below(6);
    for (std::size_t i = 0; i < parts; ++i) {
      switch (kind == 5 ? below(5) : kind) {
        case 0: result.push_back(static_cast<char>(below(256))); break;
        case 1: result += pieces_.texts[below(pieces_.texts.size())]; break;
        case 2: result.append(below(20), ' '); result += pieces_.texts[below(pieces_.texts.size())]; break;
        case 3: append_utf8(result, static_cast<char32_t>(below(8) == 0 ? below(0x20000) : below(0x500))); break;
        default: result.append(below(40), "a \n\r-=0"[below(7)]); break;
      }
    }
    return result;
  }

  std::size_t below(std::size_t n) { return n == 0 ? 0 : random_() % n; }

 private:
  const Pieces& pieces_;
  std::mt19937 random_;
};

void fuzz(const std::string& name, const Pieces& pieces, int rounds, unsigned seed = 20231) {
  std::map<std::string, std::int32_t> ids;
  for (std::size_t id = 0; id < pieces.texts.size(); ++id) {
    if (pieces.types[id] == 1) ids[pieces.texts[id]] = static_cast<std::int32_t>(id);
  }
  const auto vocabulary = pieces.vocabulary();
  Encoder<std::uint16_t> encoder(vocabulary);
  Encoder<std::uint32_t> tiny_cache(vocabulary, 1);
  Fuzz source(pieces, seed);
  for (int round = 0; round < rounds; ++round) {
    const std::string text = source.text();
    const bool prefix = source.below(4) > 0;
    const auto expected = naive_encode(pieces, ids, text, prefix);
    const auto got = encoder.encode(bytes_of(text), {.dummy_prefix = prefix});
    check(got == expected, name + ": ids of bytes " + hex(text));
    check(tiny_cache.encode(bytes_of(text), {.dummy_prefix = prefix}) == expected, name + ": ids with a cache of 2 words, of bytes " + hex(text));
    // Decoding gives the text back but for ▁, which is a space, and bytes that are not valid.
    if (first_invalid_utf8(bytes_of(text)) >= 0 || text.find("\xE2\x96\x81") != std::string::npos || !prefix) continue;
    check(decode(*vocabulary, got) == text, name + ": decode(encode(text)) of bytes " + hex(text));
  }
}

// Base64 of the pieces, one a line, in the constant `llama_vocab_base64`; scores and types follow from the ids (see src/model/Vocabulary.ts).
Pieces llama2(const std::string& path) {
  std::ifstream file(path);
  std::stringstream source;
  source << file.rdbuf();
  const std::string script = source.str();
  const std::string mark = "llama_vocab_base64 = \"";
  const std::size_t begin = script.find(mark);
  require(begin != std::string::npos, "no vocabulary in " + path + " (is the package llama-tokenizer-js installed?)");
  std::string text;
  std::uint32_t bits = 0;
  int held = 0;
  for (std::size_t i = begin + mark.size(); script[i] != '"'; ++i) {
    const std::string digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const std::size_t digit = digits.find(script[i]);
    if (digit == std::string::npos) continue;
    bits = bits << 6 | static_cast<std::uint32_t>(digit);
    held += 6;
    if (held < 8) continue;
    held -= 8;
    text.push_back(static_cast<char>(bits >> held & 0xFF));
  }
  Pieces pieces;
  pieces.add_special();
  std::istringstream lines(text);
  std::string line;
  for (int id = 0; std::getline(lines, line); ++id) {
    if (id < 259) continue;
    const bool spaces = code_points(line).find_first_not_of(space_symbol) == std::u32string::npos;
    pieces.add(line, spaces ? -1e9f : static_cast<float>(259 - id));
  }
  return pieces;
}

// ▁ inside and behind words, equal scores, a run of ▁ that beats words: nothing the ▁-run rule could stand on.
Pieces toy() {
  const std::string space = "\xE2\x96\x81";
  Pieces pieces;
  pieces.add_special();
  float score = 0;
  for (const std::string& text : {space, std::string("a"), std::string("b"), std::string("-"), std::string("="), std::string("é")}) pieces.add(text, --score);
  for (const std::string& text : {space + space, std::string("a\xE2\x96\x81"), std::string("ab"), std::string("b\xE2\x96\x81" "a"), std::string("aa"), std::string("aaa"), space + space + "a",
                                  std::string("--"), std::string("----"), std::string("=-"), std::string("éa"), std::string("aaaa")}) {
    pieces.add(text, pieces.texts.size() % 3 == 0 ? score : --score);
  }
  return pieces;
}

// Vocabularies at random from a few characters, with runs of ▁, ties, and pieces that no merge reaches: whatever rules hold for one are found when it is
// loaded, and the ids are the naive ones.
void test_made_vocabularies(int rounds) {
  std::mt19937 random(5);
  const auto below = [&](std::size_t n) { return static_cast<std::size_t>(random() % n); };
  const std::vector<std::string> characters = {"\xE2\x96\x81", "a", "b", "\xC3\xA9", "\n", "-"};
  for (int round = 0; round < rounds; ++round) {
    Pieces pieces;
    pieces.add_special();
    std::map<std::string, bool> there;
    const std::size_t used = 2 + below(characters.size() - 1);
    const bool ties = below(2) == 0, only_front = below(2) == 0;
    float score = 0;
    const auto add = [&](const std::string& text, float of) {
      if (there.emplace(text, true).second) pieces.add(text, of);
    };
    for (std::size_t i = 0; i < used; ++i) add(characters[i], -1000 - static_cast<float>(i));
    for (std::size_t count = below(30); count > 0; --count) {
      std::string text = only_front && below(2) == 0 ? characters[0] : "";
      for (std::size_t n = 1 + below(4); n > 0; --n) text += characters[only_front ? 1 + below(used - 1) : below(used)];
      score -= ties ? static_cast<float>(below(2)) : 1;
      add(text, score);
    }
    std::string run = characters[0];
    for (std::size_t longest = below(5); longest > 0; --longest) add(run += characters[0], only_front ? -1e9f : score - static_cast<float>(longest % 2));
    fuzz("made vocabulary " + std::to_string(round), pieces, 20, static_cast<unsigned>(round));
  }
}

// A varint below 2^14, then fields of protobuf.
void append_field(std::string& out, int field, const std::string& bytes) {
  out.push_back(static_cast<char>(field << 3 | 2));
  out.push_back(static_cast<char>((bytes.size() & 0x7F) | 0x80));
  out.push_back(static_cast<char>(bytes.size() >> 7));
  out += bytes;
}

std::string model_file(const Pieces& pieces, const std::string& trainer, const std::string& normalizer) {
  std::string file;
  for (std::size_t id = 0; id < pieces.texts.size(); ++id) {
    std::string piece;
    append_field(piece, 1, pieces.texts[id]);
    piece.push_back(2 << 3 | 5);
    piece.append(reinterpret_cast<const char*>(&pieces.scores[id]), 4);
    piece.push_back(3 << 3);
    piece.push_back(static_cast<char>(pieces.types[id]));
    append_field(file, 1, piece);
  }
  append_field(file, 2, trainer);
  append_field(file, 3, normalizer);
  return file;
}

std::string message_of(const std::string& file) {
  try {
    read_sentencepiece_model(bytes_of(file));
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

void test_models(int rounds) {
  const std::string bpe("\x18\x02\x98\x02\x01", 5), plain("\x18\x01\x20\x00", 4);  // model_type 2, byte_fallback; dummy prefix, spaces kept
  const std::string good = model_file(toy(), bpe, plain);
  const auto model = read_sentencepiece_model(bytes_of(good));
  check(model.pieces == toy().texts && model.scores == toy().scores && model.types == toy().types && model.add_dummy_prefix, "a model is read as it is");
  check(!read_sentencepiece_model(bytes_of(model_file(toy(), bpe, std::string("\x18\x00\x20\x00", 4)))).add_dummy_prefix, "a model without dummy prefix");
  const auto refused = [&](const std::string& file, const std::string& why) {
    check(message_of(file).find(why) != std::string::npos, "a model is refused because of: " + why + "; got: " + message_of(file));
  };
  refused("", "no pieces");
  refused("version https://git-lfs.github.com/spec/v1", "not a SentencePiece model");
  refused(good.substr(0, good.size() - 3), "not a SentencePiece model");
  refused(model_file(toy(), std::string("\x18\x01\x98\x02\x01", 5), plain), "of type 1");
  refused(model_file(toy(), std::string("\x18\x02", 2), plain), "no byte fallback");
  refused(model_file(toy(), bpe, std::string("\x18\x01", 2)), "normalizes text");
  Pieces user = toy();
  user.add("<tool>", 0, static_cast<PieceType>(4));
  refused(model_file(user, bpe, plain), "user defined");

  // Damaged files: an Error or a vocabulary that encodes, never a crash (run with TINYLLAMA_SANITIZE).
  std::mt19937 random(3);
  int read = 0;
  for (int round = 0; round < rounds; ++round) {
    std::string file = good;
    for (std::size_t n = 1 + random() % 3; n > 0; --n) {
      switch (random() % 3) {
        case 0: file[random() % file.size()] = static_cast<char>(random()); break;
        case 1: file.resize(1 + random() % file.size()); break;
        default: file.insert(random() % file.size(), file, random() % file.size(), random() % 8);
      }
    }
    try {
      auto damaged = read_sentencepiece_model(bytes_of(file));
      Encoder<std::uint16_t> encoder(std::make_shared<const Vocabulary>(std::move(damaged.pieces), damaged.scores, damaged.types), 4);
      encoder.encode(bytes_of("aab  a--=-\xC3\xA9 b"), EncodeOptions{});
      ++read;
    } catch (const Error&) {
    }
  }
  check(read > 0 && read < rounds, "some damaged models are read, some are refused");
}

void test_batches(const Pieces& pieces) {
  const auto vocabulary = pieces.vocabulary();
  BatchEncoder<std::uint16_t> encoder(vocabulary);
  std::string text;
  std::vector<std::uint32_t> offsets{0};
  Fuzz source(pieces, 77);
  for (int i = 0; i < 300; ++i) {
    const std::size_t repeats = i % 100 == 99 ? 30000 : 1;  // a few are so long that they are cut
    const std::string part = source.text() + (repeats > 1 ? "\n  line" : "");
    for (std::size_t n = 0; n < repeats; ++n) text += part;
    offsets.push_back(static_cast<std::uint32_t>(text.size()));
  }
  const EncodeOptions options{.add_bos = true, .add_eos = true, .dummy_prefix = true};
  for (const int threads : {1, 2, 7}) {
    const auto batch = encoder.encode(bytes_of(text), offsets, options, threads);
    bool equal = batch.offsets.size() == offsets.size() && batch.offsets.back() == batch.ids.size();
    for (std::size_t i = 0; equal && i + 1 < offsets.size(); ++i) {
      const auto expected = encoder.encode(bytes_of(text).subspan(offsets[i], offsets[i + 1] - offsets[i]), options);
      const auto got = batch.ids.ids().subspan(batch.offsets[i], batch.offsets[i + 1] - batch.offsets[i]);
      equal = std::equal(got.begin(), got.end(), expected.begin(), expected.end());
    }
    check(equal, "a batch on " + std::to_string(threads) + " threads is as its documents one by one");
  }
}

template <typename Body>
bool throws(Body body) {
  try {
    body();
  } catch (const Error&) {
    return true;
  }
  return false;
}

void test_bad_vocabularies() {
  Pieces good = toy();
  Pieces doubled = good;
  doubled.add("ab", -9);
  check(throws([&] { doubled.vocabulary(); }), "a piece that is there twice is refused");
  Pieces stranger = good;
  stranger.add("xy", -9);
  check(throws([&] { stranger.vocabulary(); }), "a piece of characters that are no pieces is refused");
  Pieces user = good;
  user.add("q", -9, static_cast<PieceType>(4));
  check(throws([&] { user.vocabulary(); }), "user-defined pieces are refused");
  Pieces broken = good;
  broken.add("\xFF", -9);
  check(throws([&] { broken.vocabulary(); }), "pieces that are not UTF-8 are refused");
  check(throws([] { Vocabulary({}, {}, {}); }), "an empty vocabulary is refused");
  Pieces bare;
  bare.add("a", 0);
  check(throws([&] { bare.vocabulary(); }), "a vocabulary without byte pieces is refused");
  check(throws([&] { decode(*good.vocabulary(), std::vector<std::int32_t>{100000}); }), "ids outside the vocabulary are refused");
  check(throws([&] { decode(*good.vocabulary(), std::vector<std::int32_t>{-1}); }), "negative ids are refused");
}

void test_long_words(const Pieces& pieces) {
  Encoder<std::uint16_t> encoder(pieces.vocabulary());
  const auto round_trip = [&](const std::string& text, const std::string& name) {
    check(decode(encoder.vocabulary(), encoder.encode(bytes_of(text), {})) == text, "round trip of " + name);
  };
  round_trip(std::string(1 << 20, 'a'), "1 MB of a");
  round_trip(std::string(1 << 20, ' '), "1 MB of spaces");
  std::string words;
  while (words.size() < (1 << 20)) words += "internationalizationofthe";
  round_trip(words, "1 MB of glued words");
  check(encoder.encode({}, {.add_bos = true, .add_eos = true}) == std::vector<std::int32_t>{1, 2}, "an empty document is <s></s>, without prefix");
  check(encoder.encode({}, {}).empty(), "an empty document has no ids");
}

void test_utf8() {
  const auto first = [](const std::string& text) { return first_invalid_utf8(bytes_of(text)); };
  check(first("") == -1 && first("plain text, longer than eight bytes") == -1, "ASCII is valid");
  check(first("é中😀\xED\x9F\xBF\xEE\x80\x80\xF4\x8F\xBF\xBF") == -1, "all lengths are valid");
  check(first("12345678abc\x80") == 11, "a lone continuation byte");
  check(first("a\xC0\x80") == 1 && first("\xE0\x9F\xBF") == 0 && first("\xF0\x8F\xBF\xBF") == 0, "overlong forms");
  check(first("\xED\xA0\x80") == 0, "a surrogate");
  check(first("\xF4\x90\x80\x80") == 0 && first("\xF8\x88\x80\x80\x80") == 0, "over U+10FFFF");
  check(first("ab\xE4\xB8") == 2 && first("\xF0\x9F\x98") == 0, "a cut sequence");
}

}  // namespace

int main(int argc, char** argv) {
  const std::string here = __FILE__;
  const std::string package = here.substr(0, here.rfind("test/native")) + "node_modules/llama-tokenizer-js/llama-tokenizer.js";
  const int rounds = argc > 2 ? std::atoi(argv[2]) : 2000;
  try {
    test_utf8();
    test_bad_vocabularies();
    const Pieces llama = llama2(argc > 1 ? argv[1] : package);
    check(llama.vocabulary()->longest_space_run() == 16, "Llama 2's pieces obey the ▁-run rule up to 16");
    check(toy().vocabulary()->longest_space_run() == 0, "the toy's pieces do not");
    fuzz("toy", toy(), rounds);
    fuzz("llama-2", llama, rounds);
    test_made_vocabularies(rounds / 10);
    test_models(rounds);
    test_batches(llama);
    test_long_words(llama);
  } catch (const std::exception& error) {
    check(false, error.what());
  }
  if (failures == 0) std::printf("tokenizer: all checks passed (%d fuzzed texts each)\n", rounds);
  return failures == 0 ? 0 : 1;
}
