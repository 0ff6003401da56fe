// Speed of the tokenizer on one core, first pass with a cold cache, and what the time is made of.
//   tokenizer_bench tokenizer.model FILE...   (each FILE is cut into documents of about 4 KB after a line feed)
// Prints MB/s of the first and the second pass, medians of seven, in CPU time.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "native/tokenizer/encoder.h"
#include "native/tokenizer/sentencepiece_model.h"

namespace {

using Bytes = std::vector<std::uint8_t>;

Bytes read(const char* path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

std::vector<std::span<const std::uint8_t>> documents_of(const Bytes& text) {
  std::vector<std::span<const std::uint8_t>> documents;
  for (std::size_t at = 0; at < text.size();) {
    std::size_t end = std::min(text.size(), at + 4096);
    while (end < text.size() && end < at + 65536 && text[end - 1] != '\n') ++end;
    documents.emplace_back(text.data() + at, end - at);
    at = end;
  }
  return documents;
}

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

}  // namespace

int main(int count, char** arguments) {
  using namespace tinyllama;
  if (count < 3) {
    std::fprintf(stderr, "usage: tokenizer_bench tokenizer.model FILE...\n");
    return 2;
  }
  auto model = read_sentencepiece_model(read(arguments[1]));
  const auto start = std::chrono::steady_clock::now();
  const auto vocabulary = std::make_shared<const Vocabulary>(std::move(model.pieces), model.scores, model.types);
  std::printf("vocabulary: %.0f ms\n", std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
  for (int argument = 2; argument < count; ++argument) {
    const Bytes text = read(arguments[argument]);
    const auto documents = documents_of(text);
    std::vector<double> passes[2];
    std::size_t tokens = 0;
    IdBuffer<std::uint16_t> ids;
    for (int round = 0; round < 7; ++round) {
      Encoder<std::uint16_t> encoder(vocabulary);
      for (auto& pass : passes) {
        const double begin = cpu_seconds();
        ids.clear();
        for (const auto document : documents) encoder.encode(document, {}, ids);
        tokens = ids.size();
        pass.push_back(static_cast<double>(text.size()) / 1e6 / (cpu_seconds() - begin));
      }
    }
    std::printf("%-40s %7.1f MB %9zu tokens   first pass %6.1f MB/s   second %6.1f MB/s\n", arguments[argument], static_cast<double>(text.size()) / 1e6,
                tokens, median(passes[0]), median(passes[1]));
  }
}
