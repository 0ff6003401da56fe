// Cross entropy of rows of logits, in place: one block per row.
//
// Kernel            launch                    device memory per row
// loss_in_registers one block of `threads`    one read, one write: the row stays in registers, `vectors` x 16 bytes a thread
// loss_in_passes    one block of 1024         two reads, one write: for rows that no block's registers hold
// log_probability_rows  one block of 512      one read
// The sum of exponentials is taken against each thread's own maximum; the pairs (maximum, sum) are then joined in a fixed tree (online softmax,
// Milakov & Gimelshein 2018), so equal rows give equal bits.
#pragma once
#include <cuda_bf16.h>

#include <cstdint>
#include <limits>

namespace tinyllama::cuda {

inline constexpr float log2_of_e = 1.4426950408889634f, ln_of_2 = 0.6931471805599453f;
inline constexpr float infinity = std::numeric_limits<float>::infinity();

__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 16 bytes of a row. `Top` is a running maximum; like fmaxf it passes over NaN, which shows in the sum instead.
template <class Element>
struct RowVector;
template <>
struct RowVector<__nv_bfloat16> {
  static constexpr int width = 8;
  static constexpr std::uint32_t minus_infinity = 0xff80ff80u;
  uint4 words;
  __device__ float get(int i) const {
    const std::uint32_t word = i / 2 == 0 ? words.x : i / 2 == 1 ? words.y : i / 2 == 2 ? words.z : words.w;
    return __uint_as_float(i % 2 == 0 ? word << 16 : word & 0xffff0000u);
  }
  // The same by another instruction. The compiler would else keep what the first loop unpacked for the second, in twice the registers, and
  // spill.
  __device__ float get_again(int i) const {
    const std::uint32_t word = i / 2 == 0 ? words.x : i / 2 == 1 ? words.y : i / 2 == 2 ? words.z : words.w;
    std::uint32_t bits;
    if (i % 2 == 0)
      asm("prmt.b32 %0, %1, 0, 0x1044;" : "=r"(bits) : "r"(word));
    else
      asm("prmt.b32 %0, %1, 0, 0x3244;" : "=r"(bits) : "r"(word));
    return __uint_as_float(bits);
  }
  __device__ void set(const float (&values)[8]) {
    const auto pack = [](float low, float high) {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
      return *reinterpret_cast<const std::uint32_t*>(&pair);
    };
    words = {pack(values[0], values[1]), pack(values[2], values[3]), pack(values[4], values[5]), pack(values[6], values[7])};
  }
  using Top = __nv_bfloat162;
  __device__ static Top lowest() { return pair(minus_infinity); }
  __device__ Top raise(Top top) const {
    return __hmax2(__hmax2(top, __hmax2(pair(words.x), pair(words.y))), __hmax2(pair(words.z), pair(words.w)));
  }
  __device__ static float value(Top top) { return fmaxf(__low2float(top), __high2float(top)); }

 private:
  __device__ static __nv_bfloat162 pair(std::uint32_t word) { return *reinterpret_cast<const __nv_bfloat162*>(&word); }
};
template <>
struct RowVector<float> {
  static constexpr int width = 4;
  static constexpr std::uint32_t minus_infinity = 0xff800000u;
  uint4 words;
  __device__ float get(int i) const { return __uint_as_float(i == 0 ? words.x : i == 1 ? words.y : i == 2 ? words.z : words.w); }
  __device__ float get_again(int i) const { return get(i); }
  __device__ void set(const float (&values)[4]) {
    words = {__float_as_uint(values[0]), __float_as_uint(values[1]), __float_as_uint(values[2]), __float_as_uint(values[3])};
  }
  using Top = float;
  __device__ static Top lowest() { return -infinity; }
  __device__ Top raise(Top top) const { return fmaxf(fmaxf(top, fmaxf(get(0), get(1))), fmaxf(get(2), get(3))); }
  __device__ static float value(Top top) { return top; }
};

// Past the row's end stands -inf, whose exponential is 0.
template <class Vector>
__device__ inline Vector nothing() {
  return {{Vector::minus_infinity, Vector::minus_infinity, Vector::minus_infinity, Vector::minus_infinity}};
}
template <class Vector>
__device__ inline Vector cut(const Vector& vector, int length) {
  float values[Vector::width];
#pragma unroll
  for (int i = 0; i < Vector::width; ++i) values[i] = i < length ? vector.get(i) : -infinity;
  Vector result;
  result.set(values);
  return result;
}

// max, and the sum of 2^((x - max)·log2 e).
struct Softmax {
  float maximum = -infinity, sum = 0;

  __device__ void join(const Softmax& other) {
    const float top = fmaxf(maximum, other.maximum);
    // A part without elements has the factor 0, which leaves a sum that is NaN as it is.
    const float mine = maximum == -infinity ? 0.f : exp2_fast((maximum - top) * log2_of_e);
    const float theirs = other.maximum == -infinity ? 0.f : exp2_fast((other.maximum - top) * log2_of_e);
    sum = sum * mine + other.sum * theirs;
    maximum = top;
  }
};

// What all threads of the block have seen, to all of them. One barrier inside.
template <int threads>
__device__ inline Softmax join_block(Softmax own) {
  constexpr int warps = threads / 32;
  __shared__ float2 parts[warps];
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    const Softmax other{__shfl_xor_sync(~0u, own.maximum, distance), __shfl_xor_sync(~0u, own.sum, distance)};
    own.join(other);
  }
  if (lane == 0) parts[threadIdx.x / 32] = {own.maximum, own.sum};
  __syncthreads();
  own = lane < warps ? Softmax{parts[lane].x, parts[lane].y} : Softmax{};
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    if (distance >= warps) continue;
    const Softmax other{__shfl_xor_sync(~0u, own.maximum, distance), __shfl_xor_sync(~0u, own.sum, distance)};
    own.join(other);
  }
  // Lanes past `warps` have joined only each other; what lane 0 has is the block's.
  return {__shfl_sync(~0u, own.maximum, 0), __shfl_sync(~0u, own.sum, 0)};
}

// log of the sum of exponentials, in base 2.
__device__ inline float log2_sum(const Softmax& softmax) { return softmax.maximum * log2_of_e + log2f(softmax.sum); }

struct LossRows {
  void* logits;  // rows of `stride` elements, 16-byte aligned; what lies past `vocabulary` in a row is neither used nor kept
  std::int64_t stride;
  std::int32_t vocabulary;
  float* losses;
  const std::int32_t* targets;
  const float* scale;
};

// A row whose target is ignored: loss 0, gradient 0.
template <class Vector>
__device__ inline void ignore_row(const LossRows& rows, Vector* row, int count, int threads) {
  for (int at = static_cast<int>(threadIdx.x); at < count; at += threads) row[at].words = {0, 0, 0, 0};
  if (threadIdx.x == 0) rows.losses[blockIdx.x] = 0;
}

// (softmax - onehot)·scale of the vector that starts at `first`; `from` holds its logits.
template <class Vector>
__device__ inline void write_gradient(Vector* to, const Vector& from, int first, int target, float log_sum, float scale) {
  float values[Vector::width];
#pragma unroll
  for (int i = 0; i < Vector::width; ++i) values[i] = exp2_fast(fmaf(from.get_again(i), log2_of_e, -log_sum)) * scale;
  if (static_cast<unsigned>(target - first) < static_cast<unsigned>(Vector::width)) {
#pragma unroll
    for (int i = 0; i < Vector::width; ++i)
      if (first + i == target) values[i] = (exp2_fast(fmaf(from.get_again(i), log2_of_e, -log_sum)) - 1.f) * scale;
  }
  Vector result;
  result.set(values);
  *to = result;
}

// The sum of 2^(x·log2 e - shift), added in pairs: a chain of additions would be waited for.
template <class Vector>
__device__ inline float exponentials(const Vector& vector, float shift) {
  float values[Vector::width];
#pragma unroll
  for (int i = 0; i < Vector::width; ++i) values[i] = exp2_fast(fmaf(vector.get(i), log2_of_e, -shift));
#pragma unroll
  for (int half = Vector::width / 2; half > 0; half /= 2)
#pragma unroll
    for (int i = 0; i < half; ++i) values[i] += values[i + half];
  return values[0];
}

// What one thread takes from `vector`.
template <class Vector>
__device__ inline void take(Softmax& own, const Vector& vector) {
  const float top = fmaxf(own.maximum, Vector::value(vector.raise(Vector::lowest())));
  const float shift = top == -infinity ? 0.f : top * log2_of_e;
  const float sum = own.sum * (own.maximum == -infinity ? 0.f : exp2_fast(fmaf(own.maximum, log2_of_e, -shift)));
  own = {top, sum + exponentials(vector, shift)};
}

template <class Element, int threads, int vectors, int blocks>
__global__ void __launch_bounds__(threads, blocks) loss_in_registers(const LossRows rows) {
  using Vector = RowVector<Element>;
  const int count = (rows.vocabulary + Vector::width - 1) / Vector::width;
  Element* const elements = static_cast<Element*>(rows.logits) + blockIdx.x * rows.stride;
  Vector* const row = reinterpret_cast<Vector*>(elements);
  const int target = rows.targets[blockIdx.x];
  if (target < 0) return ignore_row(rows, row, count, threads);

  Vector held[vectors];
#pragma unroll
  for (int i = 0; i < vectors; ++i) {
    const int at = static_cast<int>(threadIdx.x) + i * threads;
    held[i] = at < count ? row[at] : nothing<Vector>();
  }
  // Thread 0 reads the target's logit before the barrier in join_block, hence before anyone overwrites it.
  const float target_logit = threadIdx.x == 0 ? static_cast<float>(elements[target]) : 0.f;

  if (const int rest = rows.vocabulary % Vector::width; rest != 0) {
#pragma unroll
    for (int i = 0; i < vectors; ++i)
      if (static_cast<int>(threadIdx.x) + i * threads == count - 1) held[i] = cut(held[i], rest);
  }
  auto top = Vector::lowest();
#pragma unroll
  for (int i = 0; i < vectors; ++i) top = held[i].raise(top);
  Softmax own;
  own.maximum = Vector::value(top);
  const float shift = own.maximum == -infinity ? 0.f : own.maximum * log2_of_e;
#pragma unroll
  for (int i = 0; i < vectors; ++i) {
    own.sum += exponentials(held[i], shift);
  }
  const float log_sum = log2_sum(join_block<threads>(own));
  if (threadIdx.x == 0) rows.losses[blockIdx.x] = fmaf(log_sum, ln_of_2, -target_logit);
  const float scale = *rows.scale;
#pragma unroll
  for (int i = 0; i < vectors; ++i) {
    const int at = static_cast<int>(threadIdx.x) + i * threads;
    if (at < count) write_gradient(row + at, held[i], at * Vector::width, target, log_sum, scale);
  }
}

// The pair (maximum, sum) of what this thread reads of a row: every threads-th vector, each of which `visit` sees with its first column.
template <class Element, int threads, class Visit>
__device__ inline Softmax read_row(const Element* elements, int vocabulary, Visit visit) {
  using Vector = RowVector<Element>;
  const Vector* const row = reinterpret_cast<const Vector*>(elements);
  const int whole = vocabulary / Vector::width, rest = vocabulary % Vector::width;
  Softmax own;
#pragma unroll 4
  for (int at = static_cast<int>(threadIdx.x); at < whole; at += threads) {
    const Vector vector = row[at];
    take(own, vector);
    visit(vector, at * Vector::width);
  }
  if (rest != 0 && static_cast<int>(threadIdx.x) == whole % threads) {
    const Vector vector = cut(row[whole], rest);
    take(own, vector);
    visit(vector, whole * Vector::width);
  }
  return own;
}

template <class Element>
__global__ void __launch_bounds__(1024) loss_in_passes(const LossRows rows) {
  using Vector = RowVector<Element>;
  constexpr int threads = 1024;
  const int count = (rows.vocabulary + Vector::width - 1) / Vector::width;
  Element* const elements = static_cast<Element*>(rows.logits) + blockIdx.x * rows.stride;
  Vector* const row = reinterpret_cast<Vector*>(elements);
  const int target = rows.targets[blockIdx.x];
  if (target < 0) return ignore_row(rows, row, count, threads);
  const float target_logit = threadIdx.x == 0 ? static_cast<float>(elements[target]) : 0.f;  // before the barrier below
  const float log_sum =
      log2_sum(join_block<threads>(read_row<Element, threads>(elements, rows.vocabulary, [](const Vector&, int) {})));
  if (threadIdx.x == 0) rows.losses[blockIdx.x] = fmaf(log_sum, ln_of_2, -target_logit);
  const float scale = *rows.scale;
#pragma unroll 2
  for (int at = static_cast<int>(threadIdx.x); at < count; at += threads) {
    const Vector vector = row[at];
    write_gradient(row + at, vector, at * Vector::width, target, log_sum, scale);
  }
}

// Greedy: nothing before the target is as large, nothing behind it larger.
template <class Element>
__global__ void __launch_bounds__(512) log_probability_rows(const Element* logits, std::int64_t stride, std::int32_t vocabulary,
                                                            float* log_probabilities, std::uint8_t* greedy, const std::int32_t* targets) {
  constexpr int threads = 512;
  using Vector = RowVector<Element>;
  const int target = targets[blockIdx.x];
  if (target < 0) {
    if (threadIdx.x == 0) log_probabilities[blockIdx.x] = 0, greedy[blockIdx.x] = 0;
    return;
  }
  const Element* const row = logits + blockIdx.x * stride;
  const float logit = static_cast<float>(row[target]);
  bool beaten = logit != logit;
  const auto compare = [&](const Vector& vector, int first) {
#pragma unroll
    for (int i = 0; i < Vector::width; ++i) {
      const float other = vector.get(i);
      beaten = beaten || other > logit || (other == logit && first + i < target);
    }
  };
  const float log_sum = log2_sum(join_block<threads>(read_row<Element, threads>(row, vocabulary, compare)));
  beaten = __syncthreads_or(beaten) != 0;
  if (threadIdx.x == 0) {
    log_probabilities[blockIdx.x] = fmaf(-log_sum, ln_of_2, logit);
    greedy[blockIdx.x] = beaten ? 0 : 1;
  }
}

}  // namespace tinyllama::cuda
