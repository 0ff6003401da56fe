// The tokenizer against SentencePiece's C++ library, on files and on fuzzed texts, and the speed of both in turns. Built only where the library is
// installed (Debian: apt-get install libsentencepiece-dev).
//   sentencepiece_oracle tokenizer.model fuzz ROUNDS [SEED]
//   sentencepiece_oracle tokenizer.model files LIST        every file that LIST names, a line each, is a document; also in one batch on 3 threads
//   sentencepiece_oracle tokenizer.model speed FILE...     one thread, first pass, median of 5 (SentencePiece: of 3, 1 over 4 MB), in turns, in CPU time; ids are compared; JSON last
// Exit 1 at the first difference.
#include <sentencepiece_processor.h>

#include <algorithm>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <iterator>
#include <random>
#include <sstream>
#include <string>
#include <string_view>

#include "native/core/error.h"
#include "native/tokenizer/batch.h"
#include "native/tokenizer/encoder.h"
#include "native/tokenizer/sentencepiece_model.h"
#include "native/tokenizer/utf8.h"

using namespace tinyllama;

namespace {

std::string read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

std::span<const std::uint8_t> bytes_of(std::string_view text) { return {reinterpret_cast<const std::uint8_t*>(text.data()), text.size()}; }

// Of this thread: on a shared machine the wall clock measures the others.
double cpu_seconds() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

class Oracle {
 public:
  explicit Oracle(const std::string& path) {
    const auto status = sentencepiece_.Load(path);
    require(status.ok(), path + ": " + status.ToString());
    const std::string file = read(path);
    auto model = read_sentencepiece_model(bytes_of(file));
    pieces_ = model.pieces;
    vocabulary_ = std::make_shared<const Vocabulary>(std::move(model.pieces), model.scores, model.types);
  }

  std::shared_ptr<const Vocabulary> vocabulary() const { return vocabulary_; }
  const std::vector<std::string>& pieces() const { return pieces_; }

  const std::vector<int>& encode(std::string_view text) {
    const auto status = sentencepiece_.Encode({text.data(), text.size()}, &ids_);
    require(status.ok(), status.ToString());
    return ids_;
  }

 private:
  sentencepiece::SentencePieceProcessor sentencepiece_;
  std::shared_ptr<const Vocabulary> vocabulary_;
  std::vector<std::string> pieces_;
  std::vector<int> ids_;
};

template <typename Id>
void compare(const std::string& name, std::string_view text, std::span<const Id> ours, const std::vector<int>& theirs) {
  if (std::equal(ours.begin(), ours.end(), theirs.begin(), theirs.end())) return;
  const auto differ = std::mismatch(ours.begin(), ours.end(), theirs.begin(), theirs.end()).first - ours.begin();
  std::string message = name + ": ids differ from the " + std::to_string(differ) + "th on, of " + std::to_string(theirs.size());
  if (text.size() <= 400) {
    message += "; bytes ";
    char digits[4];
    for (const char byte : text) {
      std::snprintf(digits, sizeof digits, "%02x", static_cast<std::uint8_t>(byte));
      message += digits;
    }
  }
  throw Error(message);
}

class Fuzz {
 public:
  Fuzz(const std::vector<std::string>& pieces, std::uint64_t seed) : pieces_(pieces), random_(seed) {}

  std::string text() {
    std::string result;
    const std::size_t kind = below(8);
    const std::size_t parts = below(64) == 0 ? below(4000) : below(40);  // a few go over the encoder's window
    for (std::size_t i = 0; i < parts; ++i) append(result, kind == 7 ? below(7) : kind);
    return result;
  }

 private:
  void append(std::string& result, std::size_t kind) {
    switch (kind) {
      case 0: result.push_back(static_cast<char>(below(256))); break;                                                    // mostly not UTF-8
      case 1: result += pieces_[below(pieces_.size())]; break;                                                           // ▁ written out, too
      case 2: result.append(below(40), ' '); result += spaced(pieces_[below(pieces_.size())]); break;                    // runs of spaces
      case 3: append_utf8(result, static_cast<char32_t>(below(8) == 0 ? below(0xD800) : below(0x500))); break;           // letters of all kinds
      case 4: append_utf8(result, static_cast<char32_t>(0xE000 + below(0x110000 - 0xE000))); break;                      // astral planes
      case 5: result.append(below(60), repeated[below(repeated.size())]); break;                                            // repeats
      default: result.push_back(glued[below(glued.size())]); break;
    }
  }
  static std::string spaced(std::string piece) {
    for (std::size_t at; (at = piece.find("\xE2\x96\x81")) != std::string::npos;) piece.replace(at, 3, " ");
    return piece;
  }
  std::size_t below(std::size_t n) { return static_cast<std::size_t>(random_() % n); }

  static constexpr std::string_view repeated{"a \n\r-=0\0\t._eE", 13};
  static constexpr std::string_view glued = "etaoinshrdlu ETAOIN_-.,;(){}[]<>/\\\"'=+*0123456789\n\t";

  const std::vector<std::string>& pieces_;
  std::mt19937_64 random_;
};

void fuzz(Oracle& oracle, long rounds, std::uint64_t seed) {
  Fuzz source(oracle.pieces(), seed);
  Encoder<std::uint16_t> encoder(oracle.vocabulary());
  Encoder<std::uint32_t> small_cache(oracle.vocabulary(), 4);
  IdBuffer<std::uint16_t> ids;
  IdBuffer<std::uint32_t> wide;
  for (long round = 0; round < rounds; ++round) {
    const std::string text = source.text();
    const auto& expected = oracle.encode(text);
    ids.clear(), wide.clear();
    encoder.encode(bytes_of(text), {}, ids);
    compare("fuzz", text, ids.ids(), expected);
    small_cache.encode(bytes_of(text), {}, wide);
    compare("fuzz, cache of 16 words", text, wide.ids(), expected);
  }
  std::printf("%ld fuzzed texts: equal\n", rounds);
}

void files(Oracle& oracle, const std::string& list) {
  std::istringstream paths(read(list));
  std::string text, path;
  std::vector<std::uint32_t> offsets{0};
  while (std::getline(paths, path)) {
    text += read(path);
    offsets.push_back(static_cast<std::uint32_t>(text.size()));
  }
  BatchEncoder<std::uint16_t> encoder(oracle.vocabulary());
  const auto batch = encoder.encode(bytes_of(text), offsets, {}, 3);
  for (std::size_t i = 0; i + 1 < offsets.size(); ++i) {
    const auto document = std::string_view(text).substr(offsets[i], offsets[i + 1] - offsets[i]);
    const auto& expected = oracle.encode(document);
    compare("document " + std::to_string(i), document, batch.ids.ids().subspan(batch.offsets[i], batch.offsets[i + 1] - batch.offsets[i]), expected);
  }
  std::printf("%zu documents, %.1f MB, %zu ids: equal\n", offsets.size() - 1, static_cast<double>(text.size()) / 1e6, batch.ids.size());
}

void speed(Oracle& oracle, int count, char** paths) {
  std::string json;
  for (int argument = 0; argument < count; ++argument) {
    const std::string text = read(paths[argument]);
    std::vector<std::string_view> documents;
    for (std::size_t at = 0; at < text.size();) {  // of about 4 KB, cut after a line feed where there is one
      const std::size_t line_feed = text.find('\n', at + 4095);
      const std::size_t end = line_feed == std::string::npos ? text.size() : line_feed + 1;
      documents.push_back(std::string_view(text).substr(at, end - at));
      at = end;
    }
    std::vector<double> ours, second, theirs;
    std::size_t tokens = 0;
    for (int round = 0; round < 5; ++round) {
      Encoder<std::uint16_t> encoder(oracle.vocabulary());  // its cache is cold
      IdBuffer<std::uint16_t> ids;
      for (auto* pass : {&ours, &second}) {
        ids.clear();
        const double begin = cpu_seconds();
        for (const auto document : documents) encoder.encode(bytes_of(document), {}, ids);
        pass->push_back(cpu_seconds() - begin);
      }
      tokens = ids.size();
      if (round > 0 && (round >= 3 || text.size() > (4 << 20))) continue;  // it is slow, and steady over 20 MB
      double spent = 0;
      std::size_t at = 0;
      for (const auto document : documents) {
        const double begin = cpu_seconds();
        const auto& expected = oracle.encode(document);
        spent += cpu_seconds() - begin;
        compare(paths[argument], document, ids.ids().subspan(at, std::min(expected.size(), tokens - at)), expected);
        at += expected.size();
      }
      theirs.push_back(spent);
    }
    const auto rate = [&](const std::vector<double>& seconds) { return static_cast<double>(text.size()) / 1e6 / median(seconds); };
    std::printf("%-28s %6.1f MB %9zu ids  first pass %6.1f MB/s  second %6.1f MB/s  SentencePiece %5.2f MB/s  %5.1fx\n", paths[argument],
                static_cast<double>(text.size()) / 1e6, tokens, rate(ours), rate(second), rate(theirs), rate(ours) / rate(theirs));
    std::fflush(stdout);
    char row[200];
    std::snprintf(row, sizeof row, "%s{\"bytes\":%zu,\"tokens\":%zu,\"first\":%.2f,\"second\":%.2f,\"sentencepiece\":%.3f}", json.empty() ? "" : ",", text.size(), tokens,
                  rate(ours), rate(second), rate(theirs));
    json += row;
  }
  std::printf("[%s]\n", json.c_str());
}

}  // namespace

int main(int count, char** arguments) {
  const std::string mode = count > 3 ? arguments[2] : "";
  try {
    require(mode == "fuzz" || mode == "files" || mode == "speed", "usage: sentencepiece_oracle tokenizer.model fuzz ROUNDS [SEED] | files LIST | speed FILE...");
    Oracle oracle(arguments[1]);
    if (mode == "fuzz") fuzz(oracle, std::atol(arguments[3]), count > 4 ? std::strtoull(arguments[4], nullptr, 10) : 1);
    if (mode == "files") files(oracle, arguments[3]);
    if (mode == "speed") speed(oracle, count - 3, arguments + 3);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
