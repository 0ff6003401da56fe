// Attention, forward and backward, against softmax(QKᵀ/√S)V and its gradient in double precision, which finite differences check in turn; packed
// documents also against each document alone.
#include "test/native/device_check.h"

using namespace tinyllama;
using namespace tinyllama::check;

namespace {

using FirstKeys = std::vector<std::int32_t>;

std::vector<float> as_float(const std::vector<double>& from) { return {from.begin(), from.end()}; }
std::vector<double> as_double(const std::vector<float>& from) { return {from.begin(), from.end()}; }

struct Reference {
  std::vector<double> out, lse, dqkv;
};

// Without first keys: causal.
Reference reference(const AttentionShape& s, const std::vector<double>& qkv, const std::vector<double>& dout, const FirstKeys& first_keys) {
  const std::int64_t width = (s.heads + 2 * s.kv_heads) * s.head_size, out_width = s.heads * s.head_size, size = s.head_size;
  const double scale = 1 / std::sqrt(static_cast<double>(size));
  Reference r{std::vector<double>(dout.size()), std::vector<double>(static_cast<std::size_t>(s.batch * s.heads * s.length)),
              std::vector<double>(qkv.size())};
  std::vector<double> p(static_cast<std::size_t>(s.length)), dp(p.size());
  for (std::int64_t b = 0; b < s.batch; ++b) {
    for (std::int64_t h = 0; h < s.heads; ++h) {
      const std::int64_t g = h / (s.heads / s.kv_heads);
      for (std::int64_t t = 0; t < s.length; ++t) {
        const auto q = static_cast<std::size_t>((b * s.length + t) * width + h * size);
        const auto o = static_cast<std::size_t>((b * s.length + t) * out_width + h * size);
        auto key = [&](std::int64_t j) { return static_cast<std::size_t>((b * s.length + j) * width + (s.heads + g) * size); };
        const auto value_at = static_cast<std::size_t>(s.kv_heads * size);
        const std::int64_t first = first_keys.empty() ? 0 : first_keys[static_cast<std::size_t>(b * s.length + t)];
        double total = 0, delta = 0;
        for (std::int64_t j = first; j <= t; ++j) {
          double score = 0;
          for (std::size_t i = 0; i < static_cast<std::size_t>(size); ++i) score += qkv[q + i] * qkv[key(j) + i];
          total += p[static_cast<std::size_t>(j)] = std::exp(score * scale);
        }
        r.lse[static_cast<std::size_t>((b * s.heads + h) * s.length + t)] = std::log(total);
        for (std::int64_t j = first; j <= t; ++j) {
          const auto at = static_cast<std::size_t>(j);
          p[at] /= total;
          dp[at] = 0;
          for (std::size_t i = 0; i < static_cast<std::size_t>(size); ++i) {
            r.out[o + i] += p[at] * qkv[key(j) + value_at + i];
            dp[at] += dout[o + i] * qkv[key(j) + value_at + i];
          }
          delta += p[at] * dp[at];
        }
        for (std::int64_t j = first; j <= t; ++j) {
          const auto at = static_cast<std::size_t>(j);
          const double ds = p[at] * (dp[at] - delta) * scale;
          for (std::size_t i = 0; i < static_cast<std::size_t>(size); ++i) {
            r.dqkv[q + i] += ds * qkv[key(j) + i];
            r.dqkv[key(j) + i] += ds * qkv[q + i];
            r.dqkv[key(j) + value_at + i] += p[at] * dout[o + i];
          }
        }
      }
    }
  }
  return r;
}

// Documents of random lengths, of 1 often, of up to a fifth of the sequence or the rest of it.
FirstKeys some_documents(const AttentionShape& s) {
  FirstKeys first_keys;
  std::uint64_t state = 12345 + static_cast<std::uint64_t>(s.length);
  for (std::int64_t b = 0; b < s.batch; ++b) {
    std::int64_t first = 0, end = 0;
    for (std::int64_t t = 0; t < s.length; ++t) {
      if (t == end) {
        state = state * 6364136223846793005ULL + 1442695040888963407ULL;
        const auto draw = static_cast<std::int64_t>(state >> 33);
        first = t, end = t + (draw % 4 == 0 ? 1 : draw % 7 == 0 ? s.length : 1 + draw / 28 % (1 + s.length / 5));
      }
      first_keys.push_back(static_cast<std::int32_t>(first));
    }
  }
  return first_keys;
}

// Anything from 0 to the position itself.
FirstKeys scattered(const AttentionShape& s) {
  FirstKeys first_keys;
  for (std::int64_t row = 0; row < s.batch * s.length; ++row) first_keys.push_back(static_cast<std::int32_t>(row * 7919 % (row % s.length + 1)));
  return first_keys;
}

// The reference's gradient of sum(out * dout) against central differences, in double precision.
void check_reference() {
  const AttentionShape s{2, 9, 4, 2, 4};
  const std::int64_t rows = s.batch * s.length, width = (s.heads + 2 * s.kv_heads) * s.head_size, out_width = s.heads * s.head_size;
  const std::vector<double> qkv = as_double(values(rows * width, 21)), dout = as_double(values(rows * out_width, 22));
  for (const FirstKeys& first_keys : {FirstKeys{}, some_documents(s), scattered(s)}) {
    const Reference analytic = reference(s, qkv, dout, first_keys);
    double worst = 0;
    for (std::size_t i = 0; i < qkv.size(); ++i) {
      constexpr double step = 1e-5;
      double sums[2] = {0, 0};
      for (const int side : {0, 1}) {
        std::vector<double> moved = qkv;
        moved[i] += side ? step : -step;
        const Reference at = reference(s, moved, dout, first_keys);
        for (std::size_t k = 0; k < dout.size(); ++k) sums[side] += at.out[k] * dout[k];
      }
      worst = std::max(worst, std::abs((sums[1] - sums[0]) / (2 * step) - analytic.dqkv[i]));
    }
    expect(worst <= 1e-8, "the reference's gradient: " + std::to_string(worst * 1e9) + "e-9 from finite differences");
  }
}

struct Rows {
  std::vector<float> qkv, dout;
};

// out, lse and dqkv of the device's own forward and backward; they start as garbage, since both directions overwrite.
Outputs run(Device& device, const AttentionShape& s, Rows& in, const FirstKeys& first_keys) {
  const std::int64_t rows = s.batch * s.length, width = (s.heads + 2 * s.kv_heads) * s.head_size, out_width = s.heads * s.head_size;
  std::vector<float> out = values(rows * out_width, 13), lse = values(s.batch * s.heads * s.length, 14), dqkv = values(rows * width, 15);
  const std::int32_t* first = first_keys.empty() ? nullptr : first_keys.data();
  device.attention_forward(view(out, rows, out_width), lse.data(), view(in.qkv, rows, width), s, first);
  device.attention_backward(view(dqkv, rows, width), view(in.dout, rows, out_width), view(in.qkv, rows, width), view(out, rows, out_width),
                            lse.data(), s, first);
  return {out, lse, dqkv};
}

// Each document of the packed rows as a sequence of its own gives the rows that it has among the others.
void check_alone(const AttentionShape& s) {
  const auto width = static_cast<std::size_t>((s.heads + 2 * s.kv_heads) * s.head_size), out_width = static_cast<std::size_t>(s.heads * s.head_size);
  const std::int64_t rows = s.batch * s.length;
  Rows packed{values(rows * static_cast<std::int64_t>(width), 31), values(rows * static_cast<std::int64_t>(out_width), 32)};
  const FirstKeys first_keys = some_documents(s);
  const auto device = make_cpu_device(2);
  const Outputs together = run(*device, s, packed, first_keys);
  const auto cut = [](const std::vector<float>& from, std::size_t row, std::size_t count, std::size_t columns) {
    return std::vector<float>(from.begin() + static_cast<std::ptrdiff_t>(row * columns), from.begin() + static_cast<std::ptrdiff_t>((row + count) * columns));
  };
  const auto length = static_cast<std::size_t>(s.length);
  for (std::size_t begin = 0, end = 0; begin < first_keys.size(); begin = end) {
    for (end = begin + 1; end % length != 0 && first_keys[end] == first_keys[begin];) ++end;
    const std::size_t count = end - begin;
    Rows document{cut(packed.qkv, begin, count, width), cut(packed.dout, begin, count, out_width)};
    const Outputs alone = run(*device, {1, static_cast<std::int64_t>(count), s.heads, s.kv_heads, s.head_size}, document, {});
    const std::string what = "document of " + std::to_string(count) + " at row " + std::to_string(begin) + " of T" + std::to_string(s.length);
    expect_near(cut(together[0], begin, count, out_width), as_double(alone[0]), 2e-6, what + " out");
    expect_near(cut(together[2], begin, count, width), as_double(alone[2]), 5e-6, what + " dqkv");
  }
}

// First keys of 0 hide nothing: the bits are those without first keys.
void check_nothing_hidden() {
  const AttentionShape s{2, 150, 4, 2, 24};
  const std::int64_t rows = s.batch * s.length;
  Rows in{values(rows * 192, 41), values(rows * 96, 42)};
  const auto device = make_cpu_device(2);
  const Outputs causal = run(*device, s, in, {}), zeros = run(*device, s, in, FirstKeys(static_cast<std::size_t>(rows), 0));
  for (std::size_t i = 0; i < causal.size(); ++i) expect(same_bits(causal[i], zeros[i]), "first keys of 0 give the causal bits");
}

// `spread` scales the scores: 1 keeps the softmax flat, larger values make it move its maximum from tile to tile.
void check_attention(const AttentionShape& s, float spread, const FirstKeys& first_keys) {
  const std::int64_t rows = s.batch * s.length, width = (s.heads + 2 * s.kv_heads) * s.head_size, out_width = s.heads * s.head_size;
  std::vector<float> qkv = values(rows * width, 11), dout = values(rows * out_width, 12);
  for (std::size_t i = 0; i < qkv.size(); ++i) {
    if (static_cast<std::int64_t>(i) % width < out_width) qkv[i] *= spread;
  }
  const Reference want = reference(s, as_double(qkv), as_double(dout), first_keys);
  const std::int32_t* first = first_keys.empty() ? nullptr : first_keys.data();
  const std::string name = "attention B" + std::to_string(s.batch) + " T" + std::to_string(s.length) + " H" + std::to_string(s.heads) +
                           " G" +
                           std::to_string(s.kv_heads) + " S" + std::to_string(s.head_size) + (spread > 1 ? " spread" : "") + (first ? " documents" : "");
  on_every_device(
      name,
      [&](Device& device) {
        // Outputs start as garbage: both directions overwrite.
        std::vector<float> out = values(rows * out_width, 13), lse = values(s.batch * s.heads * s.length, 14);
        std::vector<float> dqkv = values(rows * width, 15);
        device.attention_forward(view(out, rows, out_width), lse.data(), view(qkv, rows, width), s, first);
        std::vector<float> exact_out = as_float(want.out), exact_lse = as_float(want.lse);
        device.attention_backward(view(dqkv, rows, width), view(dout, rows, out_width), view(qkv, rows, width),
                                  view(exact_out, rows, out_width), exact_lse.data(), s, first);
        return Outputs{out, lse, dqkv};
      },
      [&](const Outputs& outputs, const std::string& what) {
        // Scores of some tens carry fp32's rounding into the exponent.
        expect_near(outputs[0], want.out, spread > 1 ? 2e-5 : 3e-6, what + " out");
        expect_near(outputs[1], want.lse, 2e-6, what + " lse");
        expect_near(outputs[2], want.dqkv, 1e-5, what + " dqkv");
      });
}

}  // namespace

int main() {
  for (const AttentionShape& shape :
       {AttentionShape{1, 1, 1, 1, 16}, AttentionShape{2, 1, 4, 2, 8}, AttentionShape{1, 2, 2, 1, 2}, AttentionShape{1, 33, 2, 2, 24},
        AttentionShape{2, 47, 6, 2, 24}, AttentionShape{2, 64, 3, 1, 32}, AttentionShape{1, 65, 4, 4, 48}, AttentionShape{3, 130, 2, 2, 64},
        AttentionShape{2, 200, 12, 1, 16}, AttentionShape{1, 257, 8, 2, 64}, AttentionShape{1, 300, 1, 1, 128},
        AttentionShape{1, 31, 2, 1, 34}}) {
    for (const FirstKeys& first_keys : {FirstKeys{}, some_documents(shape)}) {
      check_attention(shape, 1, first_keys);
      check_attention(shape, 30, first_keys);
    }
    check_attention(shape, 1, scattered(shape));
  }
  check_reference();
  for (const AttentionShape& shape : {AttentionShape{2, 1, 4, 2, 8}, AttentionShape{3, 47, 6, 2, 24}, AttentionShape{2, 700, 4, 2, 32}}) check_alone(shape);
  check_nothing_hidden();
  return report("attention_test");
}
