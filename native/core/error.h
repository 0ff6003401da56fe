// The one exception of the engine. The binding turns it into a JavaScript Error; nothing below it calls exit or abort for a user's mistake.
#pragma once
#include <stdexcept>
#include <string>

namespace tinyllama {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Throws Error(message) unless the condition holds.
inline void require(bool condition, const std::string& message) {
  if (!condition) throw Error(message);
}

}  // namespace tinyllama
