// Rows of a jsonl file: finds named fields in each line and copies their strings, unescaped, into a buffer of the caller's, so that text reaches the
// tokenizer without ever being a JavaScript string. A line is checked in full against RFC 8259, as JSON.parse would; of equal keys the last counts.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace tinyllama {

// Deeper nesting is refused as too_deep: nobody's corpus has it, and a row of a million brackets must not take a stack or a minute.
inline constexpr int deepest_nesting = 512;

enum class RowStatus : std::int32_t {
  ok = 0,
  not_json = 1,       // error_at is the offset in the line of the byte that cannot stand there
  too_deep = 2,       // error_at is the bracket's
  not_an_object = 3,  // valid JSON of another kind
};

enum class ValueKind : std::int32_t { missing = 0, null = 1, no = 2, yes = 3, number = 4, string = 5, object = 6, array = 7 };

struct FieldValue {
  ValueKind kind = ValueKind::missing;
  // Of a string: unescaped UTF-8 in the arena. Of a number: its characters in the arena.
  std::size_t offset = 0, length = 0;
  // A half of a surrogate pair was escaped alone; U+FFFD stands for it.
  bool lone_surrogate = false;
};

struct Row {
  RowStatus status = RowStatus::ok;
  std::size_t begin = 0, end = 0;  // the line in the input, without its newline and carriage return
  std::size_t next = 0;            // the offset after its newline
  std::size_t error_at = 0;
  std::size_t invalid_utf8 = SIZE_MAX;  // offset in the line of the first byte that is not UTF-8; SIZE_MAX: none
  std::vector<FieldValue> fields;       // one per path
};

// A path names a field of the row's object, or of objects inside it: {"meta", "redpajama_set_name"}. Paths must differ.
using FieldPath = std::vector<std::string>;

class JsonRows {
 public:
  explicit JsonRows(std::vector<FieldPath> paths);

  // Reads the row that begins at `at` of `input`: strings and numbers of its fields go to `arena` from `used` on, which grows by them. The arena must
  // have room for as many bytes as the line has. False where the input ends before a newline and `last` is not set.
  bool read(std::span<const std::uint8_t> input, std::size_t at, bool last, std::uint8_t* arena, std::size_t& used, Row& row);

  std::size_t field_count() const { return paths_.size(); }

 private:
  std::vector<FieldPath> paths_;
};

}  // namespace tinyllama
