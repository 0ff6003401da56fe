// Attention on the CPU, twice: in fp64, and as a straightforward bf16 implementation does it, whose error is the measure for the kernels'. Inputs
// are given in double, already rounded to the kernels' type.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <thread>
#include <vector>

#include "native/device/device.h"

namespace tinyllama::check {

using Values = std::vector<double>;

inline double round_to_bf16(double value) {
  const float single = static_cast<float>(value);
  std::uint32_t bits;
  std::memcpy(&bits, &single, 4);
  if (!std::isfinite(single)) return value;
  bits = (bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u;
  float rounded;
  std::memcpy(&rounded, &bits, 4);
  return rounded;
}

struct AttentionProblem {
  AttentionShape shape;
  Values qkv, dout;                      // dense rows
  std::vector<std::int32_t> first_keys;  // may be empty
};

struct AttentionResult {
  Values out, lse, dqkv;
};

// One query head; dkeys and dvalues are its own part of the group's sums.
class HeadReference {
 public:
  HeadReference(const AttentionProblem& problem, std::int64_t batch, std::int64_t head, bool bf16)
      : problem_(problem), bf16_(bf16), batch_(batch), head_(head), size_(problem.shape.head_size), length_(problem.shape.length) {
    const auto& s = problem.shape;
    const std::int64_t group = head / (s.heads / s.kv_heads);
    query_ = column_block(problem.qkv, (s.heads + 2 * s.kv_heads) * size_, head * size_);
    key_ = column_block(problem.qkv, (s.heads + 2 * s.kv_heads) * size_, (s.heads + group) * size_);
    value_ = column_block(problem.qkv, (s.heads + 2 * s.kv_heads) * size_, (s.heads + s.kv_heads + group) * size_);
    dout_ = column_block(problem.dout, s.heads * size_, head * size_);
    key_transposed_ = transposed(key_), value_transposed_ = transposed(value_);
  }

  void run() {
    const auto area = static_cast<std::size_t>(length_ * size_);
    out.assign(area, 0), dquery.assign(area, 0), dkey.assign(area, 0), dvalue.assign(area, 0);
    lse.assign(static_cast<std::size_t>(length_), 0);
    for (std::int64_t row = 0; row < length_; ++row) run_row(row);
  }

  Values out, lse, dquery, dkey, dvalue;

 private:
  double round(double value) const { return bf16_ ? round_to_bf16(value) : value; }
  Values column_block(const Values& matrix, std::int64_t stride, std::int64_t column) const {
    Values block(static_cast<std::size_t>(length_ * size_));
    for (std::int64_t t = 0; t < length_; ++t)
      for (std::int64_t d = 0; d < size_; ++d)
        block[static_cast<std::size_t>(t * size_ + d)] = matrix[static_cast<std::size_t>((batch_ * length_ + t) * stride + column + d)];
    return block;
  }
  Values transposed(const Values& block) const {
    Values result(block.size());
    for (std::int64_t t = 0; t < length_; ++t)
      for (std::int64_t d = 0; d < size_; ++d) result[static_cast<std::size_t>(d * length_ + t)] = block[static_cast<std::size_t>(t * size_ + d)];
    return result;
  }
  // products[key] = row · transposed's column, for keys first .. last.
  Values products(const double* row, const Values& transposed_block, std::int64_t first, std::int64_t last) const {
    Values sums(static_cast<std::size_t>(last - first + 1), 0.0);
    for (std::int64_t d = 0; d < size_; ++d) {
      const double factor = row[d];
      const double* column = transposed_block.data() + d * length_ + first;
      for (std::size_t i = 0; i < sums.size(); ++i) sums[i] += factor * column[i];
    }
    return sums;
  }
  static void add(double* target, double factor, const double* source, std::int64_t size) {
    for (std::int64_t d = 0; d < size; ++d) target[d] += factor * source[d];
  }

  void run_row(std::int64_t row) {
    const double scale = 1.0 / std::sqrt(static_cast<double>(size_));
    const std::int64_t first = problem_.first_keys.empty() ? 0 : problem_.first_keys[static_cast<std::size_t>(batch_ * length_ + row)];
    const auto at = static_cast<std::size_t>(row * size_);
    Values p = products(query_.data() + at, key_transposed_, first, row);
    double top = -std::numeric_limits<double>::infinity(), sum = 0;
    for (double& score : p) score = round(score) * scale, top = std::max(top, score);
    for (double& score : p) score = std::exp(score - top), sum += score;
    lse[static_cast<std::size_t>(row)] = top + std::log(sum);
    for (double& value : p) value = round(value / sum);
    for (std::size_t i = 0; i < p.size(); ++i) add(out.data() + at, p[i], value_.data() + (first + static_cast<std::int64_t>(i)) * size_, size_);
    double delta = 0;
    for (std::int64_t d = 0; d < size_; ++d) {
      double& value = out[at + static_cast<std::size_t>(d)];
      value = round(value);
      delta += value * dout_[at + static_cast<std::size_t>(d)];
    }
    const Values dp = products(dout_.data() + at, value_transposed_, first, row);
    for (std::size_t i = 0; i < p.size(); ++i) {
      const auto key = static_cast<std::size_t>((first + static_cast<std::int64_t>(i)) * size_);
      const double ds = round(p[i] * (round(dp[i]) - delta)) * scale;
      add(dquery.data() + at, ds, key_.data() + key, size_);
      add(dkey.data() + key, ds, query_.data() + at, size_);
      add(dvalue.data() + key, p[i], dout_.data() + at, size_);
    }
  }

  const AttentionProblem& problem_;
  bool bf16_;
  std::int64_t batch_, head_, size_, length_;
  Values query_, key_, value_, dout_, key_transposed_, value_transposed_;
};

inline AttentionResult attention_reference(const AttentionProblem& problem, bool bf16) {
  const auto& s = problem.shape;
  std::vector<HeadReference> heads;
  for (std::int64_t b = 0; b < s.batch; ++b)
    for (std::int64_t h = 0; h < s.heads; ++h) heads.emplace_back(problem, b, h, bf16);
  std::vector<std::thread> threads;
  const std::size_t count = std::min<std::size_t>(heads.size(), std::max(1u, std::thread::hardware_concurrency()));
  for (std::size_t t = 0; t < count; ++t)
    threads.emplace_back([&, t] {
      for (std::size_t i = t; i < heads.size(); i += count) heads[i].run();
    });
  for (std::thread& thread : threads) thread.join();

  const std::int64_t width = (s.heads + 2 * s.kv_heads) * s.head_size, ratio = s.heads / s.kv_heads;
  AttentionResult result;
  result.out.assign(static_cast<std::size_t>(s.batch * s.length * s.heads * s.head_size), 0);
  result.lse.assign(static_cast<std::size_t>(s.batch * s.heads * s.length), 0);
  result.dqkv.assign(static_cast<std::size_t>(s.batch * s.length * width), 0);
  for (std::int64_t b = 0; b < s.batch; ++b)
    for (std::int64_t h = 0; h < s.heads; ++h) {
      const HeadReference& head = heads[static_cast<std::size_t>(b * s.heads + h)];
      for (std::int64_t t = 0; t < s.length; ++t) {
        result.lse[static_cast<std::size_t>((b * s.heads + h) * s.length + t)] = head.lse[static_cast<std::size_t>(t)];
        double* drow = result.dqkv.data() + (b * s.length + t) * width;
        for (std::int64_t d = 0; d < s.head_size; ++d) {
          const auto i = static_cast<std::size_t>(t * s.head_size + d);
          result.out[static_cast<std::size_t>(((b * s.length + t) * s.heads + h) * s.head_size + d)] = head.out[i];
          drow[h * s.head_size + d] = head.dquery[i];
          drow[(s.heads + h / ratio) * s.head_size + d] += head.dkey[i];
          drow[(s.heads + s.kv_heads + h / ratio) * s.head_size + d] += head.dvalue[i];
        }
      }
    }
  if (bf16)
    for (double& value : result.dqkv) value = round_to_bf16(value);
  return result;
}

// Root mean square and largest error over the columns [first, first + count) of rows of `width`.
struct ErrorSize {
  double mean_square = 0, largest = 0, reference_square = 0;
  double rms() const { return std::sqrt(mean_square); }
  double reference_rms() const { return std::sqrt(reference_square); }
};
inline ErrorSize error_of(const Values& got, const Values& want, std::int64_t width, std::int64_t first, std::int64_t count) {
  ErrorSize error;
  const std::int64_t rows = static_cast<std::int64_t>(want.size()) / width;
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t c = first; c < first + count; ++c) {
      const auto i = static_cast<std::size_t>(r * width + c);
      const double difference = std::abs(got[i] - want[i]);
      error.mean_square += difference * difference;
      error.reference_square += want[i] * want[i];
      error.largest = difference <= error.largest ? error.largest : difference;  // NaN wins
    }
  error.mean_square /= static_cast<double>(rows * count), error.reference_square /= static_cast<double>(rows * count);
  return error;
}

enum class InputKind { normal, large, constant, one_hot };
inline const char* name_of(InputKind kind) {
  constexpr const char* names[] = {"normal", "large scores", "constant rows", "one-hot rows"};
  return names[static_cast<int>(kind)];
}

class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15ULL + 1) {}
  double uniform() {  // [0, 1)
    std::uint64_t bits = state_ += 0x9e3779b97f4a7c15ULL;
    bits = (bits ^ bits >> 30) * 0xbf58476d1ce4e5b9ULL;
    bits = (bits ^ bits >> 27) * 0x94d049bb133111ebULL;
    return static_cast<double>((bits ^ bits >> 31) >> 11) * 0x1p-53;
  }
  double normal() { return std::sqrt(-2 * std::log(1 - uniform())) * std::cos(6.283185307179586 * uniform()); }
  std::int64_t below(std::int64_t limit) { return static_cast<std::int64_t>(uniform() * static_cast<double>(limit)); }

 private:
  std::uint64_t state_;
};

inline AttentionProblem make_problem(const AttentionShape& shape, InputKind kind, bool documents, bool bf16, std::uint64_t seed) {
  Random random(seed);
  AttentionProblem problem{shape, {}, {}, {}};
  const std::int64_t rows = shape.batch * shape.length, width = (shape.heads + 2 * shape.kv_heads) * shape.head_size;
  problem.qkv.resize(static_cast<std::size_t>(rows * width)), problem.dout.resize(static_cast<std::size_t>(rows * shape.heads * shape.head_size));
  const double size = static_cast<double>(shape.head_size);
  for (std::int64_t i = 0; i < rows * width; ++i) {
    double& value = problem.qkv[static_cast<std::size_t>(i)];
    const std::int64_t block = i % width / shape.head_size;
    value = random.normal();
    // q·k/sqrt(S) of normal vectors is about normal; times 20 the largest come to about 80.
    if (kind == InputKind::large && block < shape.heads + shape.kv_heads) value *= std::sqrt(20.0);
    if (kind == InputKind::one_hot)
      value = (i % shape.head_size == (i / width * 7 + block * 3) % shape.head_size) ? std::sqrt(8 * std::sqrt(size)) : 0;
    if (kind == InputKind::constant && i >= width) value = problem.qkv[static_cast<std::size_t>(i % width)];
  }
  for (double& value : problem.dout) value = random.normal();
  if (bf16) {
    for (double& value : problem.qkv) value = round_to_bf16(value);
    for (double& value : problem.dout) value = round_to_bf16(value);
  } else {
    for (double& value : problem.qkv) value = static_cast<float>(value);
    for (double& value : problem.dout) value = static_cast<float>(value);
  }
  if (documents) {
    problem.first_keys.resize(static_cast<std::size_t>(rows));
    for (std::int64_t b = 0; b < shape.batch; ++b) {
      std::int64_t first = 0, left = 1 + random.below(shape.length);
      for (std::int64_t t = 0; t < shape.length; ++t) {
        if (left-- == 0) first = t, left = random.below(1 + shape.length / (1 + random.below(8)));
        problem.first_keys[static_cast<std::size_t>(b * shape.length + t)] = static_cast<std::int32_t>(first);
      }
    }
  }
  return problem;
}

}  // namespace tinyllama::check
