// Whether functions that we declare ourselves are called as a library's own header says.
#pragma once
#include <type_traits>

namespace tinyllama {

// A type as the calling convention sees it: every pointer alike, an enumeration as the int that carries it. Specialized for what is passed by value.
template <class T>
struct Passed {
  using type = T;
};
template <class T>
struct Passed<T*> {
  using type = void*;
};
template <class T>
  requires std::is_enum_v<T>
struct Passed<T> {
  static_assert(sizeof(T) == sizeof(int));
  using type = int;
};

template <class Function>
struct Signature;
template <class Result, class... Arguments>
struct Signature<Result (*)(Arguments...)> {
  using type = typename Passed<Result>::type (*)(typename Passed<Arguments>::type...);
};

template <class Ours, class Theirs>
inline constexpr bool same_signature = std::is_same_v<typename Signature<Ours>::type, typename Signature<Theirs>::type>;

}  // namespace tinyllama
