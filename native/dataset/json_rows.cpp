#include "native/dataset/json_rows.h"

#include <algorithm>
#include <bitset>
#include <cstring>

#include "native/core/error.h"
#include "native/tokenizer/utf8.h"

namespace tinyllama {

namespace {

struct Failure {
  RowStatus status;
  const std::uint8_t* at;
};

bool is_space(std::uint8_t byte) { return byte == ' ' || byte == '\t' || byte == '\r' || byte == '\n'; }
bool is_digit(std::uint8_t byte) { return byte >= '0' && byte <= '9'; }

// The high bit of each byte that is a quote, a backslash or a control character; bytes of 0x80 and more are none of these. Bits above the
// first that is set may be wrong, because borrows travel upwards.
std::uint64_t special_bytes(std::uint64_t word) {
  constexpr std::uint64_t ones = 0x0101010101010101u, high = 0x8080808080808080u;
  const std::uint64_t quote = word ^ (ones * '"'), slash = word ^ (ones * '\\');
  return ((quote - ones) & ~quote & high) | ((slash - ones) & ~slash & high) | ((word - ones * 0x20) & ~word & high);
}

// The first quote, backslash or control character from `at` on, or `end`.
const std::uint8_t* find_special(const std::uint8_t* at, const std::uint8_t* end) {
  while (end - at >= 8) {
    std::uint64_t word;
    std::memcpy(&word, at, 8);
    const std::uint64_t found = special_bytes(word);
    if (found != 0) return at + (__builtin_ctzll(found) >> 3);
    at += 8;
  }
  while (at < end && *at != '"' && *at != '\\' && *at >= 0x20) ++at;
  return at;
}

bool is_ascii(const std::uint8_t* at, const std::uint8_t* end) {
  std::uint64_t all = 0;
  for (; end - at >= 8; at += 8) {
    std::uint64_t word;
    std::memcpy(&word, at, 8);
    all |= word;
  }
  for (; at < end; ++at) all |= std::uint64_t{*at} & 0x80;
  return (all & 0x8080808080808080u) == 0;
}

std::uint8_t* put_utf8(std::uint8_t* out, std::uint32_t c) {
  if (c < 0x80) {
    *out++ = static_cast<std::uint8_t>(c);
  } else if (c < 0x800) {
    *out++ = static_cast<std::uint8_t>(0xC0 | (c >> 6));
    *out++ = static_cast<std::uint8_t>(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    *out++ = static_cast<std::uint8_t>(0xE0 | (c >> 12));
    *out++ = static_cast<std::uint8_t>(0x80 | ((c >> 6) & 0x3F));
    *out++ = static_cast<std::uint8_t>(0x80 | (c & 0x3F));
  } else {
    *out++ = static_cast<std::uint8_t>(0xF0 | (c >> 18));
    *out++ = static_cast<std::uint8_t>(0x80 | ((c >> 12) & 0x3F));
    *out++ = static_cast<std::uint8_t>(0x80 | ((c >> 6) & 0x3F));
    *out++ = static_cast<std::uint8_t>(0x80 | (c & 0x3F));
  }
  return out;
}

// One line. Throws Failure.
class Line {
 public:
  Line(const std::uint8_t* at, const std::uint8_t* end, const std::vector<FieldPath>& paths, std::uint8_t* arena, std::size_t& used, Row& row)
      : at_(at), end_(end), paths_(paths), arena_(arena), used_(used), row_(row) {}

  void read() {
    skip_space();
    if (at_ < end_ && *at_ == '{') {
      std::vector<std::size_t> all(paths_.size());
      for (std::size_t i = 0; i < all.size(); ++i) all[i] = i;
      read_object(0, all);
    } else {
      skip_value();
      row_.status = RowStatus::not_an_object;
    }
    skip_space();
    if (at_ != end_) fail();
  }

 private:
  [[noreturn]] void fail(RowStatus status = RowStatus::not_json) const { throw Failure{status, at_}; }

  void skip_space() {
    while (at_ < end_ && is_space(*at_)) ++at_;
  }

  void expect(std::uint8_t byte) {
    if (at_ == end_ || *at_ != byte) fail();
    ++at_;
  }

  std::uint32_t hex4() {
    std::uint32_t value = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
      if (at_ == end_) fail();
      const std::uint8_t c = *at_;
      const int digit = is_digit(c) ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
      if (digit < 0) fail();
      value = value * 16 + static_cast<std::uint32_t>(digit);
    }
    return value;
  }

  // Behind the opening quote, to behind the closing one; to `out` where it is not null. Returns the end of what was written. Never writes more
  // bytes than it reads: \uXXXX gives at most 3 of its 6, a pair of them 4 of 12.
  std::uint8_t* string(std::uint8_t* out, bool& lone_surrogate) {
    for (;;) {
      const std::uint8_t* stop = find_special(at_, end_);
      if (out != nullptr) {
        std::memcpy(out, at_, static_cast<std::size_t>(stop - at_));
        out += stop - at_;
      }
      at_ = stop;
      if (at_ == end_ || *at_ < 0x20) fail();
      if (*at_++ == '"') return out;
      if (at_ == end_) fail();
      std::uint32_t c = 0;
      switch (*at_) {
        case '"': c = '"'; break;
        case '\\': c = '\\'; break;
        case '/': c = '/'; break;
        case 'b': c = '\b'; break;
        case 'f': c = '\f'; break;
        case 'n': c = '\n'; break;
        case 'r': c = '\r'; break;
        case 't': c = '\t'; break;
        case 'u': c = 0x10000; break;
        default: fail();
      }
      ++at_;
      if (c == 0x10000) c = unicode_escape(lone_surrogate);
      if (out != nullptr) out = put_utf8(out, c);
    }
  }

  // Behind \u.
  std::uint32_t unicode_escape(bool& lone_surrogate) {
    const std::uint32_t first = hex4();
    if (first < 0xD800 || first > 0xDFFF) return first;
    if (first < 0xDC00 && end_ - at_ >= 6 && at_[0] == '\\' && at_[1] == 'u') {
      const std::uint8_t* second_escape = at_;
      at_ += 2;
      const std::uint32_t second = hex4();
      if (second >= 0xDC00 && second <= 0xDFFF) return 0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00);
      at_ = second_escape;  // a half, and something else after it
    }
    lone_surrogate = true;
    return 0xFFFD;
  }

  void number() {
    if (at_ < end_ && *at_ == '-') ++at_;
    if (at_ == end_ || !is_digit(*at_)) fail();
    if (*at_ == '0') {
      ++at_;
    } else {
      digits();
    }
    if (at_ < end_ && *at_ == '.') {
      ++at_;
      digits();
    }
    if (at_ < end_ && (*at_ == 'e' || *at_ == 'E')) {
      ++at_;
      if (at_ < end_ && (*at_ == '+' || *at_ == '-')) ++at_;
      digits();
    }
  }

  void digits() {
    if (at_ == end_ || !is_digit(*at_)) fail();
    while (at_ < end_ && is_digit(*at_)) ++at_;
  }

  void word(const char* text) {
    for (; *text != 0; ++text) expect(static_cast<std::uint8_t>(*text));
  }

  ValueKind scalar() {
    if (at_ == end_) fail();
    bool ignored = false;
    switch (*at_) {
      case '"': ++at_; string(nullptr, ignored); return ValueKind::string;
      case 't': word("true"); return ValueKind::yes;
      case 'f': word("false"); return ValueKind::no;
      case 'n': word("null"); return ValueKind::null;
      default: number(); return ValueKind::number;
    }
  }

  void descend() {
    if (depth_ == deepest_nesting) fail(RowStatus::too_deep);
    ++depth_;
  }

  // Any value, without recursion: one bit per open bracket.
  void skip_value() {
    std::bitset<deepest_nesting + 1> is_object;
    const int bottom = depth_;
    bool ignored = false;
    for (;;) {
      skip_space();
      if (at_ < end_ && (*at_ == '{' || *at_ == '[')) {
        descend();
        is_object[static_cast<std::size_t>(depth_)] = *at_ == '{';
        ++at_;
        skip_space();
        const bool object = is_object[static_cast<std::size_t>(depth_)];
        if (at_ < end_ && *at_ == (object ? '}' : ']')) {
          ++at_;
          --depth_;
        } else {
          if (object) key(nullptr, ignored);
          continue;
        }
      } else {
        scalar();
      }
      // A value is over: what follows it belongs to the innermost open bracket.
      for (;;) {
        if (depth_ == bottom) return;
        skip_space();
        const bool object = is_object[static_cast<std::size_t>(depth_)];
        if (at_ == end_) fail();
        if (*at_ == ',') {
          ++at_;
          skip_space();
          if (object) key(nullptr, ignored);
          break;
        }
        if (*at_ != (object ? '}' : ']')) fail();
        ++at_;
        --depth_;
      }
    }
  }

  // A key and its colon.
  std::uint8_t* key(std::uint8_t* out, bool& lone_surrogate) {
    expect('"');
    std::uint8_t* end = string(out, lone_surrogate);
    skip_space();
    expect(':');
    return end;
  }

  bool key_is(const std::string& name, const std::uint8_t* begin, const std::uint8_t* end) const {
    return name.size() == static_cast<std::size_t>(end - begin) && std::memcmp(name.data(), begin, name.size()) == 0;
  }

  // An object whose fields at `level` of the paths in `wanted` are looked for.
  void read_object(std::size_t level, const std::vector<std::size_t>& wanted) {
    descend();
    expect('{');
    skip_space();
    if (at_ < end_ && *at_ == '}') {
      ++at_;
      --depth_;
      return;
    }
    std::vector<std::size_t> deeper;
    for (;;) {
      skip_space();
      bool lone = false;
      // The key is unescaped where its value would go, and overwritten by it.
      std::uint8_t* begin = arena_ + used_;
      const std::uint8_t* end = key(begin, lone);
      std::size_t here = SIZE_MAX;
      deeper.clear();
      for (const std::size_t path : wanted) {
        if (!key_is(paths_[path][level], begin, end)) continue;
        if (paths_[path].size() == level + 1) {
          here = path;
        } else {
          deeper.push_back(path);
        }
        row_.fields[path] = FieldValue{};  // an equal key before this one no longer counts
      }
      skip_space();
      if (here != SIZE_MAX) {
        capture(row_.fields[here]);
      } else if (!deeper.empty() && at_ < end_ && *at_ == '{') {
        read_object(level + 1, std::vector<std::size_t>(deeper));
      } else {
        skip_value();
      }
      skip_space();
      if (at_ == end_) fail();
      if (*at_ == '}') break;
      expect(',');
    }
    ++at_;
    --depth_;
  }

  void capture(FieldValue& value) {
    if (at_ == end_) fail();
    std::uint8_t* out = arena_ + used_;
    if (*at_ == '"') {
      ++at_;
      const std::uint8_t* end = string(out, value.lone_surrogate);
      value.kind = ValueKind::string;
      value.offset = used_;
      value.length = static_cast<std::size_t>(end - out);
      used_ += value.length;
    } else if (*at_ == '{' || *at_ == '[') {
      value.kind = *at_ == '{' ? ValueKind::object : ValueKind::array;
      skip_value();
    } else {
      const std::uint8_t* begin = at_;
      value.kind = scalar();
      if (value.kind != ValueKind::number) return;
      value.offset = used_;
      value.length = static_cast<std::size_t>(at_ - begin);
      std::memcpy(out, begin, value.length);
      used_ += value.length;
    }
  }

  const std::uint8_t* at_;
  const std::uint8_t* const end_;
  const std::vector<FieldPath>& paths_;
  std::uint8_t* const arena_;
  std::size_t& used_;
  Row& row_;
  int depth_ = 0;
};

}  // namespace

JsonRows::JsonRows(std::vector<FieldPath> paths) : paths_(std::move(paths)) {
  for (const FieldPath& path : paths_) {
    require(!path.empty(), "a field's path needs a name");
    const auto begins_with = [&](const FieldPath& other) {
      return &other != &path && other.size() <= path.size() && std::equal(other.begin(), other.end(), path.begin());
    };
    require(std::none_of(paths_.begin(), paths_.end(), begins_with), "the path of a field leads through another field, or is named twice: " + path.back());
  }
}

bool JsonRows::read(std::span<const std::uint8_t> input, std::size_t at, bool last, std::uint8_t* arena, std::size_t& used, Row& row) {
  const std::uint8_t* begin = input.data() + at;
  const std::uint8_t* limit = input.data() + input.size();
  const void* newline = begin == limit ? nullptr : std::memchr(begin, '\n', static_cast<std::size_t>(limit - begin));
  if (newline == nullptr && !last) return false;
  const auto* end = newline == nullptr ? limit : static_cast<const std::uint8_t*>(newline);
  row.next = static_cast<std::size_t>(end - input.data()) + (newline == nullptr ? 0 : 1);
  if (end > begin && end[-1] == '\r') --end;
  row.begin = at;
  row.end = static_cast<std::size_t>(end - input.data());
  row.status = RowStatus::ok;
  row.error_at = 0;
  row.invalid_utf8 = SIZE_MAX;
  row.fields.assign(paths_.size(), FieldValue{});
  if (!is_ascii(begin, end)) {
    const auto invalid = first_invalid_utf8({begin, end});
    if (invalid >= 0) row.invalid_utf8 = static_cast<std::size_t>(invalid);
  }
  const std::size_t before = used;
  // A byte order mark, which some programs write at a file's start.
  const std::uint8_t* first = end - begin >= 3 && std::memcmp(begin, "\xEF\xBB\xBF", 3) == 0 ? begin + 3 : begin;
  try {
    Line(first, end, paths_, arena, used, row).read();
  } catch (const Failure& failure) {
    row.status = failure.status;
    row.error_at = static_cast<std::size_t>(failure.at - begin);
    row.fields.assign(paths_.size(), FieldValue{});
    used = before;
  }
  return true;
}

}  // namespace tinyllama
