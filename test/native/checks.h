// What native tests count and say.
#pragma once
#include <cstdio>
#include <functional>
#include <string>

#include "native/core/error.h"

namespace tinyllama::check {

inline int failures = 0;

inline void expect(bool holds, const std::string& what) {
  if (holds) return;
  ++failures;
  std::printf("FAILED: %s\n", what.c_str());
}

inline void expect_throws(const std::function<void()>& call, const std::string& expected) {
  try {
    call();
    expect(false, "no error, expected: " + expected);
  } catch (const Error& error) {
    const std::string message = error.what();
    expect(message.find(expected) != std::string::npos, "error \"" + message + "\" lacks \"" + expected + "\"");
  }
}

}  // namespace tinyllama::check
