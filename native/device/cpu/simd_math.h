// Loops over vectors and the exponential, for every instruction set. Included by the kernels' files alone; see simd_avx2.h.
#pragma once
#include <cstdint>

namespace tinyllama {
namespace {

template <class V>
struct Whole {
  typename V::Register load(const float* at) const { return V::load(at); }
  void store(float* at, typename V::Register value) const { V::store(at, value); }
};

template <class V>
struct Part {
  int count;
  typename V::Register load(const float* at) const { return V::load_part(at, count); }
  void store(float* at, typename V::Register value) const { V::store_part(at, count, value); }
};

// body(i, part) for i = 0, width, 2 width, ...; the last part may be shorter and reads zeros beyond the end.
template <class V, class Body>
void for_each_vector(std::int64_t count, Body&& body) {
  std::int64_t i = 0;
  for (; i + V::width <= count; i += V::width) body(i, Whole<V>{});
  if (i < count) body(i, Part<V>{static_cast<int>(count - i)});
}

// exp(x) within 1e-7 relative (Cephes' expf: Cody-Waite reduction and a polynomial on |r| <= ln(2)/2); 0 below -87.3, where the result
// would no longer be a normal number, and exp(88) above 88. A NaN stays one.
template <class V>
typename V::Register exponential(typename V::Register x) {
  const auto low = V::set(-87.3f);
  const auto bounded = V::max(low, V::min(V::set(88.f), x));
  const auto n = V::round(V::mul(bounded, V::set(1.44269504088896341f)));
  auto r = V::fma(n, V::set(-0.693359375f), bounded);
  r = V::fma(n, V::set(2.12194440e-4f), r);
  auto p = V::fma(V::set(1.9875691500e-4f), r, V::set(1.3981999507e-3f));
  p = V::fma(p, r, V::set(8.3334519073e-3f));
  p = V::fma(p, r, V::set(4.1665795894e-2f));
  p = V::fma(p, r, V::set(1.6666665459e-1f));
  p = V::fma(p, r, V::set(5.0000001201e-1f));
  p = V::fma(p, V::mul(r, r), V::add(r, V::set(1.f)));
  return V::above(x, low, V::scale(p, n));
}

template <class V>
typename V::Register sigmoid(typename V::Register x) {
  const auto one = V::set(1.f);
  return V::div(one, V::add(one, exponential<V>(V::sub(V::zero(), x))));
}

}  // namespace
}  // namespace tinyllama
