// Numbers and texts in a row of bytes, for what ranks send each other. All ranks run on machines of one byte order.
#pragma once
#include <cstdint>
#include <cstring>
#include <string>

#include "native/core/error.h"

namespace tinyllama {

class MessageWriter {
 public:
  MessageWriter& number(std::uint32_t value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof(value));
    return *this;
  }
  MessageWriter& text(const std::string& value) {
    number(static_cast<std::uint32_t>(value.size()));
    bytes_ += value;
    return *this;
  }
  const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
};

// Throws Error where the bytes end too early.
class MessageReader {
 public:
  explicit MessageReader(std::string bytes) : bytes_(std::move(bytes)) {}
  std::uint32_t number() {
    std::uint32_t value = 0;
    std::memcpy(&value, take(sizeof(value)), sizeof(value));
    return value;
  }
  std::string text() {
    const std::size_t length = number();
    return {take(length), length};
  }

 private:
  const char* take(std::size_t length) {
    require(length <= bytes_.size() - at_, "a message between ranks is cut off");
    at_ += length;
    return bytes_.data() + at_ - length;
  }
  std::string bytes_;
  std::size_t at_ = 0;
};

}  // namespace tinyllama
