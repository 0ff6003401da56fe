// The row scanner: cases by hand, then damaged rows by the hundred thousand, each of which must give the same answer whether the line stands alone or
// among others, and must stay inside its buffers (build with -DTINYLLAMA_SANITIZE=ON to have that checked byte by byte). That it accepts and
// decodes exactly what JSON.parse does is tested in test/data/JsonRows.test.ts.
// Usage: json_rows_test [rounds]
#include "native/dataset/json_rows.h"

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>

#include "native/core/error.h"
#include "native/dataset/text_facts.h"

using namespace tinyllama;

namespace {

int failures = 0;

void check(bool ok, const std::string& what) {
  if (ok) return;
  if (++failures <= 20) std::printf("FAILED: %s\n", what.c_str());
}

struct Answer {
  Row row;
  std::vector<std::string> texts;
  bool operator==(const Answer& other) const {
    if (row.status != other.row.status || row.error_at != other.row.error_at || row.invalid_utf8 != other.row.invalid_utf8) return false;
    for (std::size_t i = 0; i < row.fields.size(); ++i)
      if (row.fields[i].kind != other.row.fields[i].kind || row.fields[i].lone_surrogate != other.row.fields[i].lone_surrogate) return false;
    return texts == other.texts;
  }
};

std::span<const std::uint8_t> bytes_of(const std::string& text) { return {reinterpret_cast<const std::uint8_t*>(text.data()), text.size()}; }

// Buffers of exactly the allowed size, on the heap, so that a sanitizer sees any step outside.
Answer read_at(JsonRows& rows, const std::string& input, std::size_t at, bool last) {
  const std::unique_ptr<std::uint8_t[]> copy(new std::uint8_t[input.size()]), arena(new std::uint8_t[input.size() - at]);
  std::copy(input.begin(), input.end(), copy.get());
  Answer answer;
  std::size_t used = 0;
  check(rows.read({copy.get(), input.size()}, at, last, arena.get(), used, answer.row), "a whole line is read");
  check(used <= answer.row.end - answer.row.begin, "the arena holds no more than the line");
  for (const FieldValue& field : answer.row.fields)
    answer.texts.emplace_back(reinterpret_cast<const char*>(arena.get()) + field.offset, field.length);
  return answer;
}

JsonRows rows_of() { return JsonRows({{"text"}, {"meta", "set"}, {"n"}}); }

void known_rows() {
  JsonRows rows = rows_of();
  const auto read = [&](const std::string& line) { return read_at(rows, line, 0, true); };
  const Answer slim = read(R"({"text":"a\n\"b\" \u00e9\ud83d\ude00\/","meta":{"x":[1,{"set":0}],"set":"Book"},"n":-1.5e3})");
  check(slim.row.status == RowStatus::ok, "a row of SlimPajama's form");
  check(slim.texts[0] == "a\n\"b\" \xC3\xA9\xF0\x9F\x98\x80/" && slim.texts[1] == "Book" && slim.texts[2] == "-1.5e3", "its fields");
  check(read(R"({"text":1,"text":"two"})").texts[0] == "two", "of equal keys the last counts");
  check(read(R"({"meta":{"set":"a"},"meta":{}})").row.fields[1].kind == ValueKind::missing, "also where it holds less");
  check(read(R"({"meta":"set"})").row.fields[1].kind == ValueKind::missing, "no object, no field inside");
  check(read(R"({"te\u0078t":"x"})").texts[0] == "x", "escaped keys");
  check(read(R"({"text":"\ud83dx"})").row.fields[0].lone_surrogate, "a lone half is marked");
  check(read("\xEF\xBB\xBF{\"text\":\"x\"}\r").texts[0] == "x", "a byte order mark and a carriage return");
  check(read("{\"text\":\"\xC3\"}").row.invalid_utf8 == 9, "where UTF-8 ends");
  check(read("[1]").row.status == RowStatus::not_an_object && read("null").row.status == RowStatus::not_an_object, "other values");
  for (const char* bad : {"", "{", "{}}", "{\"a\":01}", "{\"a\":1.}", "{\"a\":+1}", "{\"a\":\"\t\"}", "{\"a\":\"\\x\"}", "{\"a\":\"\\u12g4\"}", "{\"a\" 1}",
                          "{\"a\":1,}", "{a:1}", "[1,]", "[1 2]", "{\"a\":[}", "tru", "nulll", "\"x", "{\"text\":\"x\"", "{\"text\":\"\\ud83d\\u\"}"})
    check(read(bad).row.status == RowStatus::not_json, std::string("not JSON: ") + bad);
  check(read("{\"text\":}").row.error_at == 8, "the place of the error");
  check(read(std::string(600, '[')).row.status == RowStatus::too_deep, "too deep");
  check(read("{\"a\":" + std::string(511, '[') + std::string(511, ']') + "}").row.status == RowStatus::ok, "deep, not too deep");
  Row row;
  std::uint8_t arena[32];
  std::size_t used = 0;
  check(!rows.read(bytes_of("{\"text\":"), 0, false, arena, used, row), "a line that goes on");
  const auto refuses = [](std::vector<FieldPath> paths) {
    try {
      JsonRows{std::move(paths)};
      return false;
    } catch (const Error&) {
      return true;
    }
  };
  check(refuses({{"a"}, {"a", "b"}}) && refuses({{"a"}, {"a"}}) && refuses({{}}) && !refuses({{"a", "b"}, {"a", "c"}}), "paths that get in each other's way");
}

void fuzz(int rounds) {
  std::mt19937_64 random(7);
  const std::vector<std::string> seeds = {
      R"({"text":"plain text of some length, longer than a word","meta":{"redpajama_set_name":"x","set":"Github"},"n":1})",
      R"({"meta":{"a":[[],{},[{"set":"no"}]],"set":"\u00e9\ud83d\ude00\\\"\/\b\f\n\r\t"},"text":"größer 😀","n":-0.1E+2})",
      R"({"text":"\ud83d","n":true,"meta":{"set":null}} )", R"( [ {"text":"x"} , false , "\udc00\ud800" ] )"};
  const std::string pieces[] = {"\"", "\\", "{", "}", "[", "]", ":", ",", "\\u", "\\ud83d", "\\ude00", "\"text\":", "\"meta\":{", "\"set\":", "1e9", "-", "null", "\xC3", "\xF0\x9F\x98\x80", " "};
  JsonRows rows = rows_of();
  for (int round = 0; round < rounds; ++round) {
    std::string line = seeds[random() % seeds.size()];
    for (int changes = static_cast<int>(random() % 4); changes > 0; --changes) {
      const std::size_t at = random() % (line.size() + 1);
      switch (random() % 5) {
        case 0: line = line.substr(0, at); break;
        case 1: line.insert(at, pieces[random() % std::size(pieces)]); break;
        case 2: if (at < line.size()) line[at] = static_cast<char>(random() % 256); break;
        case 3: line.erase(at, random() % 8); break;
        default: line += line.substr(at); break;
      }
    }
    std::erase(line, '\n');
    const Answer alone = read_at(rows, line, 0, true);
    const Answer among = read_at(rows, "{}\n" + line + "\n{\"text\":\"next\"}\n", 3, false);
    check(alone == among, "a line alone and among others: " + line);
  }
}

void known_facts() {
  const auto hash = [](const std::string& text, std::uint64_t seed) { return xxh64(bytes_of(text), seed); };
  check(hash("", 0) == 0xEF46DB3751D8E999u && hash("a", 0) == 0xD24EC4F1A98C6E5Bu && hash("abc", 0) == 0x44BC2CF5AD770999u, "XXH64's own values");
  check(hash("Nobody inspects the spammish repetition", 0) == 0xFBCEA83C8A378BF1u, "XXH64 over more than 32 bytes");
  check(count_characters(bytes_of("gr\xC3\xB6\xC3\x9F" "e \xF0\x9F\x98\x80")) == 7, "characters");
}

}  // namespace

int main(int count, char** arguments) {
  known_rows();
  known_facts();
  fuzz(count > 1 ? std::atoi(arguments[1]) : 200000);
  std::printf(failures == 0 ? "json_rows: all passed\n" : "json_rows: %d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
