// Norm, rotary, SwiGLU, embedding, sums and AdamW against double precision.
#include <numeric>
#include <stdexcept>

#include "native/core/error.h"
#include "native/device/cpu/thread_pool.h"
#include "test/native/device_check.h"

using namespace tinyllama;
using namespace tinyllama::check;

namespace {

using Doubles = std::vector<double>;

void check_norm(std::int64_t rows, std::int64_t width, bool with_delta) {
  std::vector<float> x = values(rows * width, 31), delta = values(rows * width, 32), dout = values(rows * width, 33);
  const std::vector<float> gain = values(width, 34), dx_before = values(rows * width, 35), dgain_before = values(width, 36);
  const double eps = 1e-5;
  const auto count = static_cast<std::size_t>(rows * width), w = static_cast<std::size_t>(width);
  Doubles sum(count), out(count), rstd(static_cast<std::size_t>(rows)), dx(dx_before.begin(), dx_before.end());
  Doubles dgain(dgain_before.begin(), dgain_before.end());
  for (std::size_t row = 0; row < static_cast<std::size_t>(rows); ++row) {
    double squares = 0, products = 0;
    for (std::size_t d = row * w; d < (row + 1) * w; ++d) {
      sum[d] = static_cast<double>(x[d]) + (with_delta ? static_cast<double>(delta[d]) : 0);
      squares += sum[d] * sum[d];
      products += static_cast<double>(dout[d]) * gain[d - row * w] * sum[d];
    }
    const double r = rstd[row] = 1 / std::sqrt(squares / static_cast<double>(width) + eps);
    for (std::size_t d = row * w; d < (row + 1) * w; ++d) {
      out[d] = sum[d] * r * gain[d - row * w];
      dx[d] += r * gain[d - row * w] * dout[d] - sum[d] * r * r * r * products / static_cast<double>(width);
      dgain[d - row * w] += dout[d] * sum[d] * r;
    }
  }
  on_every_device(
      "rms_norm " + std::to_string(rows) + "x" + std::to_string(width) + (with_delta ? " with delta" : ""),
      [&](Device& device) {
        std::vector<float> total = x, result(count), factors(static_cast<std::size_t>(rows)), back = dx_before, gains = dgain_before;
        device.rms_norm_forward(view(result, rows, width), factors.data(), with_delta ? view(total, rows, width) : Tensor{},
                                view(x, rows, width), with_delta ? view(delta, rows, width) : Tensor{}, gain.data(),
                                static_cast<float>(eps));
        device.rms_norm_backward(view(back, rows, width), gains.data(), Tensor{}, view(dout, rows, width), view(total, rows, width), gain.data(),
                                 factors.data());
        std::vector<float> again(count), back_again = dx_before, gains_again = dgain_before;
        device.rms_norm_backward(view(back_again, rows, width), gains_again.data(), view(again, rows, width), view(dout, rows, width),
                                 view(total, rows, width), gain.data(), factors.data());
        expect(same_bits(again, result) && same_bits(back_again, back) && same_bits(gains_again, gains),
               "rms_norm_backward brings the forward's output back");
        std::fill(again.begin(), again.end(), 0.f);
        device.rms_norm_again(view(again, rows, width), view(total, rows, width), gain.data(), factors.data());
        expect(same_bits(again, result), "rms_norm_again gives what the forward gave");
        return Outputs{result, factors, total, back, gains};
      },
      [&](const Outputs& outputs, const std::string& what) {
        expect_near(outputs[0], out, 1e-6, what + " out");
        expect_near(outputs[1], rstd, 1e-6, what + " rstd");
        expect_near(outputs[2], sum, 1e-6, what + " sum");
        expect_near(outputs[3], dx, 2e-6, what + " dx");
        expect_near(outputs[4], dgain, 3e-6, what + " dgain");
      });
}

void check_rotary(const AttentionShape& s) {
  const std::int64_t rows = s.batch * s.length, width = (s.heads + 2 * s.kv_heads) * s.head_size, half = s.head_size / 2;
  const std::vector<float> qkv = values(rows * width, 41), cosine = values(s.length * half, 42), sine = values(s.length * half, 43);
  for (const bool inverse : {false, true}) {
    Doubles want(qkv.begin(), qkv.end());
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t head = 0; head < s.heads + s.kv_heads; ++head) {
        for (std::int64_t i = 0; i < half; ++i) {
          const auto at = static_cast<std::size_t>(row * width + head * s.head_size + i), other = at + static_cast<std::size_t>(half);
          const auto table = static_cast<std::size_t>(row % s.length * half + i);
          const double c = cosine[table], n = inverse ? -sine[table] : sine[table], x = qkv[at], y = qkv[other];
          want[at] = x * c - y * n;
          want[other] = y * c + x * n;
        }
      }
    }
    on_every_device(
        std::string("rotary S") + std::to_string(s.head_size) + (inverse ? " inverse" : ""),
        [&](Device& device) {
          std::vector<float> result = qkv;
          device.rotary(view(result, rows, width), cosine.data(), sine.data(), s, inverse);
          return Outputs{result};
        },
        [&](const Outputs& outputs, const std::string& what) { expect_near(outputs[0], want, 1e-6, what); });
  }
}

void check_swiglu(std::int64_t rows, std::int64_t width, float spread) {
  std::vector<float> gate_up = values(rows * 2 * width, 51), dact = values(rows * width, 52);
  for (float& value : gate_up) value *= spread;
  Doubles act(dact.size()), dgate_up(gate_up.size());
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t f = 0; f < width; ++f) {
      const auto gate = static_cast<std::size_t>(row * 2 * width + f), up = gate + static_cast<std::size_t>(width);
      const auto at = static_cast<std::size_t>(row * width + f);
      const double g = gate_up[gate], u = gate_up[up], s = 1 / (1 + std::exp(-g)), d = dact[at];
      act[at] = g * s * u;
      dgate_up[gate] = d * u * s * (1 + g * (1 - s));
      dgate_up[up] = d * g * s;
    }
  }
  on_every_device(
      "swiglu " + std::to_string(rows) + "x" + std::to_string(width) + (spread > 10 ? " wide" : ""),
      [&](Device& device) {
        std::vector<float> result(act.size()), in_place = gate_up;
        device.swiglu_forward(view(result, rows, width), view(gate_up, rows, 2 * width));
        device.swiglu_backward(view(in_place, rows, 2 * width), Tensor{}, view(dact, rows, width), view(in_place, rows, 2 * width));
        // Bringing the output back, over its own gradient, changes nothing else.
        std::vector<float> gradient = gate_up, again = dact;
        device.swiglu_backward(view(gradient, rows, 2 * width), view(again, rows, width), view(again, rows, width),
                               view(gradient, rows, 2 * width));
        expect(same_bits(again, result) && same_bits(gradient, in_place), "swiglu_backward brings the forward's output back");
        return Outputs{result, in_place};
      },
      [&](const Outputs& outputs, const std::string& what) {
        expect_near(outputs[0], act, 1e-6, what + " act");
        expect_near(outputs[1], dgate_up, 1e-6, what + " dgate_up");
      });
}

void check_embedding(std::int64_t rows, std::int64_t vocabulary, std::int64_t width) {
  std::vector<float> table = values(vocabulary * width, 61), dout = values(rows * width, 62);
  std::vector<std::int32_t> ids(static_cast<std::size_t>(rows));
  for (std::size_t row = 0; row < ids.size(); ++row) ids[row] = static_cast<std::int32_t>(row * row % static_cast<std::size_t>(vocabulary));
  Doubles out(dout.size()), dtable(table.begin(), table.end());
  for (std::size_t i = 0; i < out.size(); ++i) {
    const auto at = static_cast<std::size_t>(ids[i / static_cast<std::size_t>(width)] * width) + i % static_cast<std::size_t>(width);
    out[i] = table[at];
    dtable[at] += dout[i];
  }
  on_every_device(
      "embedding " + std::to_string(rows) + "x" + std::to_string(vocabulary) + "x" + std::to_string(width),
      [&](Device& device) {
        std::vector<float> result(out.size()), gradient = table;
        device.embedding_forward(view(result, rows, width), view(table, vocabulary, width), ids.data());
        device.embedding_backward(view(gradient, vocabulary, width), view(dout, rows, width), ids.data());
        return Outputs{result, gradient};
      },
      [&](const Outputs& outputs, const std::string& what) {
        expect_near(outputs[0], out, 0, what + " forward");
        expect_near(outputs[1], dtable, 1e-6, what + " backward");
      });
}

void check_flat(std::int64_t count) {
  const std::vector<float> a = values(count, 71), b = values(count, 72);
  Doubles sum(a.begin(), a.end());
  double squares = 0;
  for (std::size_t i = 0; i < sum.size(); ++i) {
    sum[i] += b[i];
    squares += static_cast<double>(a[i]) * a[i];
  }
  // torch.optim.AdamW, two steps.
  const AdamWArguments arguments{1e-2f, 0.9f, 0.95f, 1e-8f, 0.1f, 1, 0.5f};
  Doubles weights(a.begin(), a.end()), first(a.size()), second(a.size());
  for (int step = 1; step <= 2; ++step) {
    const double rate = arguments.learning_rate, beta1 = arguments.beta1, beta2 = arguments.beta2;
    for (std::size_t i = 0; i < weights.size(); ++i) {
      const double gradient = 0.5 * b[i] * step;
      first[i] = beta1 * first[i] + (1 - beta1) * gradient;
      second[i] = beta2 * second[i] + (1 - beta2) * gradient * gradient;
      weights[i] *= 1 - rate * arguments.weight_decay;
      const double root = std::sqrt(second[i] / (1 - std::pow(beta2, step)));
      weights[i] -= rate * (first[i] / (1 - std::pow(beta1, step))) / (root + arguments.epsilon);
    }
  }
  on_every_device(
      "flat arrays of " + std::to_string(count),
      [&](Device& device) {
        std::vector<float> total = a, w = a, m(a.size()), v(a.size()), gradients(a.size());
        device.add(total.data(), b.data(), count);
        std::vector<double> sums(static_cast<std::size_t>((count + 4095) / 4096));
        device.squared_norm(sums.data(), a.data(), count);
        const double norm = std::accumulate(sums.begin(), sums.end(), 0.0);
        AdamWArguments each = arguments;
        for (each.step = 1; each.step <= 2; ++each.step) {
          for (std::size_t i = 0; i < b.size(); ++i) gradients[i] = b[i] * static_cast<float>(each.step);
          device.adamw(w.data(), nullptr, m.data(), v.data(), gradients.data(), count, each);
        }
        expect(same_bits(gradients, std::vector<float>(gradients.size())), "adamw leaves zeros for gradients");
        return Outputs{total, {static_cast<float>(norm)}, w, m, v};
      },
      [&](const Outputs& outputs, const std::string& what) {
        expect_near(outputs[0], sum, 1e-7, what + " add");
        expect_near(outputs[1], {squares}, 1e-7, what + " squared_norm");
        expect_near(outputs[2], weights, 1e-6, what + " adamw weights");
        expect_near(outputs[3], first, 1e-6, what + " adamw first moment");
        expect_near(outputs[4], second, 1e-6, what + " adamw second moment");
      });
}

// A NaN must reach the loss, whatever instruction set computes it.
void check_not_a_number() {
  on_every_device(
      "NaN",
      [](Device& device) {
        std::vector<float> gate_up = {NAN, 1.f}, act(1), losses(1), dhidden(8), dweight(800), hidden(8, 1.f), weight(800, 0.5f);
        hidden[3] = NAN;
        const std::int32_t target = 5;
        const float scale = 1;
        device.swiglu_forward(view(act, 1, 1), view(gate_up, 1, 2));
        device.linear_cross_entropy(losses.data(), view(dhidden, 1, 8), view(dweight, 100, 8), view(hidden, 1, 8), view(weight, 100, 8),
                                    &target, &scale);
        return Outputs{act, losses};
      },
      [](const Outputs& outputs, const std::string& what) {
        expect(std::isnan(outputs[0][0]), what + " through swiglu");
        expect(std::isnan(outputs[1][0]), what + " through the loss");
      });
}

void check_thread_pool() {
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    std::vector<int> visits(1000);
    for (int round = 0; round < 50; ++round) {
      pool.parallel_for(1000, [&](std::int64_t item, int) { ++visits[static_cast<std::size_t>(item)]; });
    }
    bool all = true;
    for (const int count : visits) all = all && count == 50;
    expect(all, "every item once per loop, " + std::to_string(threads) + " threads");
    std::string message;
    try {
      pool.parallel_for(100, [](std::int64_t item, int) {
        if (item >= 7) throw Error("item " + std::to_string(item));
      });
    } catch (const Error& error) {
      message = error.what();
    }
    expect(message == "item 7", "the lowest item's exception arrives: " + message);
    int after = 0;
    pool.parallel_for(1, [&](std::int64_t, int) { ++after; });
    expect(after == 1, "the pool works on after an exception");
  }
  try {
    ThreadPool none(0);
    expect(false, "a pool of no threads must throw");
  } catch (const Error&) {
  }
}

}  // namespace

int main() {
  for (const bool with_delta : {false, true}) {
    check_norm(1, 1, with_delta);
    check_norm(31, 33, with_delta);
    check_norm(257, 128, with_delta);
    check_norm(130, 771, with_delta);
  }
  for (const std::int64_t size : {std::int64_t{2}, std::int64_t{24}, std::int64_t{64}, std::int64_t{66}}) check_rotary({2, 33, 3, 1, size});
  check_swiglu(1, 1, 1);
  check_swiglu(33, 257, 4);
  check_swiglu(130, 352, 200);
  check_embedding(1, 1, 1);
  check_embedding(257, 31, 33);
  check_embedding(64, 500, 192);
  for (const std::int64_t count : {std::int64_t{1}, std::int64_t{33}, std::int64_t{16385}, std::int64_t{70001}}) check_flat(count);
  check_not_a_number();
  check_thread_pool();
  return report("pointwise_test");
}
