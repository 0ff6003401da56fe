// Attention, forward and backward, against softmax(QKᵀ/√S)V and its gradient in double precision.
#include "test/native/device_check.h"

using namespace tinyllama;
using namespace tinyllama::check;

namespace {

std::vector<float> as_float(const std::vector<double>& from) { return {from.begin(), from.end()}; }

struct Reference {
  std::vector<double> out, lse, dqkv;
};

Reference reference(const AttentionShape& s, const std::vector<float>& qkv, const std::vector<float>& dout) {
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
        double total = 0, delta = 0;
        for (std::int64_t j = 0; j <= t; ++j) {
          double score = 0;
          for (std::size_t i = 0; i < static_cast<std::size_t>(size); ++i) score += static_cast<double>(qkv[q + i]) * qkv[key(j) + i];
          total += p[static_cast<std::size_t>(j)] = std::exp(score * scale);
        }
        r.lse[static_cast<std::size_t>((b * s.heads + h) * s.length + t)] = std::log(total);
        for (std::int64_t j = 0; j <= t; ++j) {
          const auto at = static_cast<std::size_t>(j);
          p[at] /= total;
          dp[at] = 0;
          for (std::size_t i = 0; i < static_cast<std::size_t>(size); ++i) {
            r.out[o + i] += p[at] * qkv[key(j) + value_at + i];
            dp[at] += static_cast<double>(dout[o + i]) * qkv[key(j) + value_at + i];
          }
          delta += p[at] * dp[at];
        }
        for (std::int64_t j = 0; j <= t; ++j) {
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

// `spread` scales the scores: 1 keeps the softmax flat, larger values make it move its maximum from tile to tile.
void check_attention(const AttentionShape& s, float spread) {
  const std::int64_t rows = s.batch * s.length, width = (s.heads + 2 * s.kv_heads) * s.head_size, out_width = s.heads * s.head_size;
  std::vector<float> qkv = values(rows * width, 11), dout = values(rows * out_width, 12);
  for (std::size_t i = 0; i < qkv.size(); ++i) {
    if (static_cast<std::int64_t>(i) % width < out_width) qkv[i] *= spread;
  }
  const Reference want = reference(s, qkv, dout);
  const std::string name = "attention B" + std::to_string(s.batch) + " T" + std::to_string(s.length) + " H" + std::to_string(s.heads) +
                           " G" +
                           std::to_string(s.kv_heads) + " S" + std::to_string(s.head_size) + (spread > 1 ? " spread" : "");
  on_every_device(
      name,
      [&](Device& device) {
        // Outputs start as garbage: both directions overwrite.
        std::vector<float> out = values(rows * out_width, 13), lse = values(s.batch * s.heads * s.length, 14);
        std::vector<float> dqkv = values(rows * width, 15);
        device.attention_forward(view(out, rows, out_width), lse.data(), view(qkv, rows, width), s);
        std::vector<float> exact_out = as_float(want.out), exact_lse = as_float(want.lse);
        device.attention_backward(view(dqkv, rows, width), view(dout, rows, out_width), view(qkv, rows, width),
                                  view(exact_out, rows, out_width), exact_lse.data(), s);
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
    check_attention(shape, 1);
    check_attention(shape, 30);
  }
  return report("attention_test");
}
