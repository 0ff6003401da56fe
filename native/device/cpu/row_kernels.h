// Element-wise operations and the norms, on rows and flat arrays.
#pragma once
#include "native/device/cpu/kernels.h"
#include "native/device/cpu/simd_math.h"

namespace tinyllama {
namespace {

template <class V>
void add(float* a, const float* b, std::int64_t count) {
  for_each_vector<V>(count, [&](std::int64_t i, auto part) { part.store(a + i, V::add(part.load(a + i), part.load(b + i))); });
}

template <class V>
double squared_norm(const float* values, std::int64_t count) {
  typename V::DoubleSum sum;
  for_each_vector<V>(count, [&](std::int64_t i, auto part) {
    const auto value = part.load(values + i);
    sum.add_product(value, value);
  });
  return sum.total();
}

template <class V>
void adamw(float* weights, float* first, float* second, float* gradients, std::int64_t count, const AdamWFactors& factors) {
  const auto gradient_scale = V::set(factors.gradient_scale), beta1 = V::set(factors.beta1), beta2 = V::set(factors.beta2);
  const auto rest1 = V::set(1.f - factors.beta1), rest2 = V::set(1.f - factors.beta2), decay = V::set(factors.decay);
  const auto step_size = V::set(factors.step_size), root_correction = V::set(factors.root_correction), epsilon = V::set(factors.epsilon);
  for_each_vector<V>(count, [&](std::int64_t i, auto part) {
    const auto gradient = V::mul(part.load(gradients + i), gradient_scale);
    const auto m = V::fma(beta1, part.load(first + i), V::mul(rest1, gradient));
    const auto v = V::fma(beta2, part.load(second + i), V::mul(rest2, V::mul(gradient, gradient)));
    const auto update = V::div(V::mul(step_size, m), V::add(V::mul(V::sqrt(v), root_correction), epsilon));
    part.store(first + i, m);
    part.store(second + i, v);
    part.store(weights + i, V::sub(V::mul(part.load(weights + i), decay), update));
    part.store(gradients + i, V::set(0.f));
  });
}

template <class V>
void rms_norm_again(float* out, const float* x, const float* gain, float rstd, std::int64_t columns) {
  const auto factor = V::set(rstd);
  for_each_vector<V>(columns, [&](std::int64_t i, auto part) {
    part.store(out + i, V::mul(V::mul(part.load(x + i), factor), part.load(gain + i)));
  });
}

template <class V>
float rms_norm_forward(float* out, float* sum, const float* x, const float* delta, const float* gain, std::int64_t columns, float eps) {
  typename V::DoubleSum squares;
  if (delta) {
    for_each_vector<V>(columns, [&](std::int64_t i, auto part) {
      const auto value = V::add(part.load(x + i), part.load(delta + i));
      part.store(sum + i, value);
      squares.add_product(value, value);
    });
    x = sum;
  } else {
    for_each_vector<V>(columns, [&](std::int64_t i, auto part) {
      const auto value = part.load(x + i);
      squares.add_product(value, value);
    });
  }
  const float rstd = static_cast<float>(1.0 / __builtin_sqrt(squares.total() / static_cast<double>(columns) + static_cast<double>(eps)));
  rms_norm_again<V>(out, x, gain, rstd, columns);
  return rstd;
}

// With y = x * r * gain and r = (mean(x²) + eps)^-1/2:  dx = r * gain * dy - x * r³ * mean(dy * gain * x),  dgain = dy * x * r.
template <class V>
void rms_norm_backward(float* dx, float* dgain, const float* dout, const float* x, const float* gain, float rstd, std::int64_t columns) {
  typename V::DoubleSum products;
  const auto factor = V::set(rstd);
  for_each_vector<V>(columns, [&](std::int64_t i, auto part) {
    const auto dy = part.load(dout + i), value = part.load(x + i);
    products.add_product(V::mul(dy, part.load(gain + i)), value);
    part.store(dgain + i, V::fma(dy, V::mul(value, factor), part.load(dgain + i)));
  });
  const double cube = static_cast<double>(rstd) * static_cast<double>(rstd) * static_cast<double>(rstd);
  const auto correction = V::set(static_cast<float>(-cube * products.total() / static_cast<double>(columns)));
  for_each_vector<V>(columns, [&](std::int64_t i, auto part) {
    const auto scaled = V::mul(V::mul(part.load(dout + i), part.load(gain + i)), factor);
    part.store(dx + i, V::add(part.load(dx + i), V::fma(correction, part.load(x + i), scaled)));
  });
}

template <class V>
void rotary(float* head, const float* cosine, const float* sine, std::int64_t half, float sine_sign) {
  const auto sign = V::set(sine_sign);
  for_each_vector<V>(half, [&](std::int64_t i, auto part) {
    const auto x = part.load(head + i), y = part.load(head + half + i);
    const auto c = part.load(cosine + i), s = V::mul(part.load(sine + i), sign);
    part.store(head + i, V::sub(V::mul(x, c), V::mul(y, s)));
    part.store(head + half + i, V::add(V::mul(y, c), V::mul(x, s)));
  });
}

template <class V>
void swiglu_forward(float* act, const float* gate, const float* up, std::int64_t columns) {
  for_each_vector<V>(columns, [&](std::int64_t i, auto part) {
    const auto g = part.load(gate + i);
    part.store(act + i, V::mul(V::mul(g, sigmoid<V>(g)), part.load(up + i)));
  });
}

// d silu(g) / dg = s + g * s * (1 - s), s = sigmoid(g). act, where it is not null, receives the forward's output; it may be dact.
template <class V>
void swiglu_backward(float* dgate, float* dup, float* act, const float* dact, const float* gate, const float* up, std::int64_t columns) {
  const auto one = V::set(1.f);
  for_each_vector<V>(columns, [&](std::int64_t i, auto part) {
    const auto g = part.load(gate + i), u = part.load(up + i), dy = part.load(dact + i);
    const auto s = sigmoid<V>(g), silu = V::mul(g, s);
    part.store(dgate + i, V::mul(V::mul(dy, u), V::fma(silu, V::sub(one, s), s)));
    part.store(dup + i, V::mul(dy, silu));
    if (act) part.store(act + i, V::mul(silu, u));
  });
}

}  // namespace
}  // namespace tinyllama
