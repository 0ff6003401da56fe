// Speed of the GPU's memory-bound operations at TinyLlama's shapes, as a share of what a copy reaches on the same card.
//   cuda_pointwise_bench [rows] [millions of parameters]     32768 and 1100 unless given
// Time: median of 25 by events, each of `repeats` launches over input sets in turn, so that the cache does not hold them.
// Bytes: each input read once, each output written once. Variants of a kernel are named by their template arguments.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "native/device/cuda/embedding_backward_launch.cuh"
#include "native/device/cuda/norm_backward_kernels.h"
#include "native/device/cuda/optimizer_kernels.h"
#include "native/device/cuda/pointwise.h"
#include "native/device/cuda/row_sort.h"

namespace tinyllama {
namespace {

using Half = __nv_bfloat16;

__global__ void fill(Half* halves, float* floats, std::int64_t count, unsigned seed, float scale) {
  for (std::int64_t i = blockIdx.x * 256ll + threadIdx.x; i < count; i += gridDim.x * 256ll) {
    unsigned x = static_cast<unsigned>(i) * 2654435761u + seed * 40503u + 12345u;
    x ^= x >> 16, x *= 0x7feb352du, x ^= x >> 15, x *= 0x846ca68bu, x ^= x >> 16;
    const float value = (static_cast<float>(x >> 8) * 0x1p-23f - 1.f) * scale;
    if (halves) halves[i] = __float2bfloat16_rn(value);
    if (floats) floats[i] = value;
  }
}

__global__ void fill_ids(std::int32_t* ids, std::int64_t count, unsigned vocabulary, unsigned seed, bool zipf) {
  const std::int64_t i = blockIdx.x * 256ll + threadIdx.x;
  if (i >= count) return;
  unsigned x = static_cast<unsigned>(i) * 2654435761u + seed;
  x ^= x >> 16, x *= 0x7feb352du, x ^= x >> 15, x *= 0x846ca68bu, x ^= x >> 16;
  const float uniform = static_cast<float>(x >> 8) * 0x1p-24f;  // rank ~ 1/r: the id is V^u
  ids[i] = zipf ? min(static_cast<int>(powf(static_cast<float>(vocabulary), uniform)), static_cast<int>(vocabulary) - 1)
                : static_cast<int>(x % vocabulary);
}

template <int vectors>
__global__ __launch_bounds__(256) void copy_kernel(uint4* out, const uint4* in, std::int64_t count) {
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * vectors * 256 + threadIdx.x;
  uint4 part[vectors];
#pragma unroll
  for (int i = 0; i < vectors; ++i)
    if (first + i * 256 < count) part[i] = __ldcs(in + first + i * 256);
#pragma unroll
  for (int i = 0; i < vectors; ++i)
    if (first + i * 256 < count) __stcs(out + first + i * 256, part[i]);
}

class Memory {
 public:
  explicit Memory(std::size_t bytes) { CHECK_CUDA(cudaMalloc(&data_, bytes)); }
  ~Memory() { cudaFree(data_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
};

class Stopwatch {
 public:
  explicit Stopwatch(cudaStream_t stream) : stream_(stream) {
    CHECK_CUDA(cudaEventCreate(&start_));
    CHECK_CUDA(cudaEventCreate(&stop_));
  }
  ~Stopwatch() {
    cudaEventDestroy(start_);
    cudaEventDestroy(stop_);
  }
  // Median seconds of one launch; work(set) takes the number of the input set. Few launches for long work.
  double median(double expected, const std::function<void(int)>& work) {
    const int repeats = std::clamp(static_cast<int>(1.5e-3 / expected), 1, 16), samples = 25;
    int set = 0;
    for (int i = 0; i < 3; ++i) work(set++);
    std::vector<double> seconds;
    for (int sample = 0; sample < samples; ++sample) {
      CHECK_CUDA(cudaEventRecord(start_, stream_));
      for (int i = 0; i < repeats; ++i) work(set++);
      CHECK_CUDA(cudaEventRecord(stop_, stream_));
      CHECK_CUDA(cudaEventSynchronize(stop_));
      float milliseconds = 0;
      CHECK_CUDA(cudaEventElapsedTime(&milliseconds, start_, stop_));
      seconds.push_back(milliseconds * 1e-3 / repeats);
    }
    std::sort(seconds.begin(), seconds.end());
    spread_ = (seconds[samples * 9 / 10] - seconds[samples / 10]) / seconds[samples / 2];
    return seconds[samples / 2];
  }
  double spread() const { return spread_; }

 private:
  cudaStream_t stream_;
  cudaEvent_t start_ = nullptr, stop_ = nullptr;
  double spread_ = 0;
};

class Report {
 public:
  explicit Report(CudaContext& context) : watch_(context.stream()) {}
  // Where `must` is set, less than 80 % of the copy is a failure.
  void time(const std::string& name, double bytes, bool must, const std::function<void(int)>& work) {
    const double seconds = watch_.median(bytes / 3e12, work);
    rows_.push_back({name, bytes, seconds, watch_.spread(), must});
  }
  double best_copy() const {
    double best = 0;
    for (const Row& row : rows_)
      if (row.name.starts_with("copy")) best = std::max(best, row.bytes / row.seconds);
    return best;
  }
  int print() const {
    const double copy = best_copy();
    int slow = 0;
    std::printf("%-50s %9s %9s %7s %7s %7s %7s\n", "operation", "MB", "us", "GB/s", "of copy", "of 4300", "p90-p10");
    for (const Row& row : rows_) {
      const double rate = row.bytes / row.seconds;
      const bool falls_short = row.must && rate < 0.8 * copy;
      slow += falls_short;
      std::printf("%-50s %9.1f %9.1f %7.0f %6.1f%% %6.1f%% %6.1f%%%s\n", row.name.c_str(), row.bytes / 1e6, row.seconds * 1e6, rate / 1e9, 100 * rate / copy,
                  100 * rate / 4.3e12, 100 * row.spread, falls_short ? "  < 80 %" : "");
    }
    std::printf("best copy %.0f GB/s; %s\n", copy / 1e9, slow ? "SOME FALL SHORT of 80 % of it" : "all that must reach 80 % of it do");
    return slow ? 1 : 0;
  }

 private:
  struct Row {
    std::string name;
    double bytes, seconds, spread;
    bool must;
  };
  Stopwatch watch_;
  std::vector<Row> rows_;
};

// One pool of random bf16 for all row operations; a set is a window of it, so each operation walks through memory the cache has forgotten.
class Pool {
 public:
  Pool(CudaContext& context, std::int64_t elements) : elements_(elements), memory_(static_cast<std::size_t>(elements) * 2) {
    fill<<<4096, 256, 0, context.stream()>>>(memory_.as<Half>(), nullptr, elements, 1, 1.f);
    CHECK_LAUNCH("fill");
  }
  // Takes the next rows x columns matrix; starts again at the beginning at the end of the pool.
  Tensor take(std::int64_t rows, std::int64_t columns) {
    if (used_ + rows * columns > elements_) used_ = 0;
    const Tensor tensor{memory_.as<Half>() + used_, DataType::bf16, rows, columns, columns};
    used_ += rows * columns;
    return tensor;
  }
  void rewind() { used_ = 0; }

 private:
  std::int64_t elements_, used_ = 0;
  Memory memory_;
};

constexpr int sets = 3;
constexpr std::int64_t width = 2048, feed_forward = 5632;

void time_copies(CudaContext& context, Report& report) {
  constexpr std::size_t bytes = std::size_t{4} << 30;
  Memory from(bytes), to(bytes);
  fill<<<4096, 256, 0, context.stream()>>>(nullptr, from.as<float>(), bytes / 4, 2, 1.f);
  report.time("copy, cudaMemcpyAsync", 2.0 * bytes, false, [&](int) {
    CHECK_CUDA(cudaMemcpyAsync(to.as<char>(), from.as<char>(), bytes, cudaMemcpyDeviceToDevice, context.stream()));
  });
  const std::int64_t count = bytes / 16;
  report.time("copy, kernel of 4 vectors", 2.0 * bytes, false, [&](int) {
    copy_kernel<4><<<static_cast<unsigned>((count + 1023) / 1024), 256, 0, context.stream()>>>(to.as<uint4>(), from.as<uint4>(), count);
    CHECK_LAUNCH("copy");
  });
  report.time("copy, kernel of 1 vector", 2.0 * bytes, false, [&](int) {
    copy_kernel<1><<<static_cast<unsigned>((count + 255) / 256), 256, 0, context.stream()>>>(to.as<uint4>(), from.as<uint4>(), count);
    CHECK_LAUNCH("copy");
  });
}

template <int row_threads, int vectors, bool residual>
void time_norm_forward(CudaContext& context, Report& report, const std::vector<cuda::NormForward<Half>>& arguments, double bytes) {
  constexpr int block = cuda::block_threads<row_threads>;
  report.time("  forward <" + std::to_string(row_threads) + " threads, " + std::to_string(vectors) + (residual ? " vectors>" : " vectors, no residual>"),
              bytes, false, [&](int set) {
    cuda::norm_forward_rows<Half, row_threads, vectors, residual>
        <<<cuda::blocks_for(arguments[0].rows, block / row_threads), block, 0, context.stream()>>>(arguments[set % sets]);
    CHECK_LAUNCH("norm_forward_rows");
  });
}

// launch(arguments, number of blocks) is the kernel in question.
void time_norm_backward(CudaContext& context, Report& report, const std::string& name, const std::vector<cuda::NormBackward<Half>>& arguments, float* dgain,
                        double bytes, int resident, const std::function<void(const cuda::NormBackward<Half>&, unsigned)>& launch) {
  const auto parts = static_cast<unsigned>(resident * context.multiprocessors());
  report.time(name, bytes, false, [&](int set) {
    cuda::NormBackward<Half> a = arguments[set % sets];
    a.partials = static_cast<float*>(context.scratch(parts * width * sizeof(float)));
    launch(a, parts);
    CHECK_LAUNCH("norm backward");
    cuda::sum_gain_gradient<<<width / cuda::gain_columns, 1024, 0, context.stream()>>>(dgain, a.partials, static_cast<int>(parts), width);
    CHECK_LAUNCH("sum_gain_gradient");
  });
}

template <int row_threads, int vectors, int at_once, int resident, cuda::Gain gain>
void time_norm_backward_rows(CudaContext& context, Report& report, const std::vector<cuda::NormBackward<Half>>& arguments, float* dgain, double bytes) {
  time_norm_backward(context, report,
                     "  rows <" + std::to_string(row_threads) + ", " + std::to_string(vectors) + ", " + std::to_string(at_once) + " at once, " +
                         std::to_string(resident) + (gain == cuda::Gain::held ? " resident, held>" : " resident, cached>"),
                     arguments, dgain, bytes, resident, [&](const cuda::NormBackward<Half>& a, unsigned parts) {
                       cuda::norm_backward_rows<Half, row_threads, vectors, at_once, resident, gain>
                           <<<parts, cuda::block_threads<row_threads>, 0, context.stream()>>>(a);
                     });
}


// The variants, and the second pass alone, with the bytes of the whole.
void time_norm_backward_variants(CudaContext& context, Report& report, const std::vector<cuda::NormBackward<Half>>& arguments, float* dgain, double bytes) {
  using cuda::Gain;
  time_norm_backward_rows<256, 1, 1, 3, Gain::held>(context, report, arguments, dgain, bytes);
  time_norm_backward_rows<256, 1, 1, 4, Gain::held>(context, report, arguments, dgain, bytes);
  time_norm_backward_rows<256, 1, 1, 5, Gain::cached>(context, report, arguments, dgain, bytes);
  time_norm_backward_rows<256, 1, 2, 3, Gain::held>(context, report, arguments, dgain, bytes);
  time_norm_backward_rows<128, 2, 1, 5, Gain::held>(context, report, arguments, dgain, bytes);
  time_norm_backward_rows<128, 2, 1, 7, Gain::cached>(context, report, arguments, dgain, bytes);
  time_norm_backward_rows<64, 4, 1, 8, Gain::cached>(context, report, arguments, dgain, bytes);
  time_norm_backward_rows<32, 8, 1, 1, Gain::cached>(context, report, arguments, dgain, bytes);
  const int parts = 7 * context.multiprocessors();
  auto* partials = static_cast<float*>(context.scratch(static_cast<std::size_t>(parts) * width * sizeof(float)));
  report.time("  sum_gain_gradient alone", bytes, false, [&](int) {
    cuda::sum_gain_gradient<<<width / cuda::gain_columns, 1024, 0, context.stream()>>>(dgain, partials, parts, width);
    CHECK_LAUNCH("sum_gain_gradient");
  });
}

void time_norms(CudaContext& context, Report& report, Pool& pool, std::int64_t rows) {
  Memory gain(width * 4), dgain(width * 4), rstd(static_cast<std::size_t>(rows) * 4);
  fill<<<8, 256, 0, context.stream()>>>(nullptr, gain.as<float>(), width, 3, 1.f);
  fill<<<8, 256, 0, context.stream()>>>(nullptr, dgain.as<float>(), width, 3, 0.f);
  pool.rewind();
  std::vector<std::vector<Tensor>> matrices(sets);
  for (auto& set : matrices)
    for (int i = 0; i < 4; ++i) set.push_back(pool.take(rows, width));
  auto of = [&](int set, std::size_t index) { return matrices[static_cast<std::size_t>(set % sets)][index]; };
  const double one = static_cast<double>(rows) * width * 2;
  const auto* g = gain.as<float>();
  auto* r = rstd.as<float>();
  auto half = [&](int set, std::size_t index) { return static_cast<Half*>(of(set, index).data); };

  std::vector<cuda::NormForward<Half>> forward;
  for (int set = 0; set < sets; ++set)
    forward.push_back({half(set, 0), r, half(set, 1), half(set, 2), half(set, 3), g, width, width, width, width, rows, width, 1e-5f});
  report.time("rms_norm_forward with residual", 4 * one, true,
              [&](int s) { cuda::rms_norm_forward(context, of(s, 0), r, of(s, 1), of(s, 2), of(s, 3), g, 1e-5f); });
  time_norm_forward<256, 1, true>(context, report, forward, 4 * one);
  time_norm_forward<128, 2, true>(context, report, forward, 4 * one);
  time_norm_forward<64, 4, true>(context, report, forward, 4 * one);
  report.time("rms_norm_forward, no residual", 2 * one, true, [&](int s) { cuda::rms_norm_forward(context, of(s, 0), r, {}, of(s, 2), {}, g, 1e-5f); });
  for (auto& arguments : forward) arguments.sum = nullptr, arguments.delta = nullptr;
  time_norm_forward<256, 1, false>(context, report, forward, 2 * one);
  time_norm_forward<64, 4, false>(context, report, forward, 2 * one);
  time_norm_forward<128, 2, false>(context, report, forward, 2 * one);
  report.time("rms_norm_again", 2 * one, true, [&](int s) { cuda::rms_norm_again(context, of(s, 0), of(s, 2), g, r); });

  std::vector<cuda::NormBackward<Half>> backward;
  for (int set = 0; set < sets; ++set)
    backward.push_back({half(set, 0), nullptr, half(set, 1), half(set, 2), half(set, 3), g, r, width, width, width, width, rows, width});
  auto* dg = dgain.as<float>();
  report.time("rms_norm_backward with normed", 5 * one, true, [&](int s) { cuda::rms_norm_backward(context, of(s, 0), dg, of(s, 1), of(s, 2), of(s, 3), g, r); });
  time_norm_backward_variants(context, report, backward, dg, 5 * one);
  report.time("rms_norm_backward, no normed", 4 * one, true, [&](int s) { cuda::rms_norm_backward(context, of(s, 0), dg, {}, of(s, 2), of(s, 3), g, r); });
  for (auto& arguments : backward) arguments.normed = nullptr;
  time_norm_backward_variants(context, report, backward, dg, 4 * one);
}

void time_rotary(CudaContext& context, Report& report, Pool& pool, std::int64_t rows) {
  constexpr std::int64_t length = 2048, columns = 2560, half = 32;
  Memory table(length * half * 8);
  std::vector<float> angles(length * half * 2);
  for (std::int64_t i = 0; i < length * half; ++i) {
    angles[static_cast<std::size_t>(i)] = std::cos(static_cast<float>(i));
    angles[static_cast<std::size_t>(length * half + i)] = std::sin(static_cast<float>(i));
  }
  CHECK_CUDA(cudaMemcpyAsync(table.as<char>(), angles.data(), angles.size() * 4, cudaMemcpyHostToDevice, context.stream()));
  CHECK_CUDA(cudaStreamSynchronize(context.stream()));
  pool.rewind();
  std::vector<Tensor> matrices;
  for (int i = 0; i < sets; ++i) matrices.push_back(pool.take(rows, columns));
  const AttentionShape shape{rows / length, length, 32, 4, 64};
  const double bytes = static_cast<double>(rows) * 36 * 64 * 4 + length * half * 8.0;
  report.time("rotary", bytes, true, [&](int s) {
    cuda::rotary(context, matrices[static_cast<std::size_t>(s % sets)], table.as<float>(), table.as<float>() + length * half, shape, (s / sets) % 2);
  });
}

void time_swiglu(CudaContext& context, Report& report, Pool& pool, std::int64_t rows) {
  pool.rewind();
  std::vector<Tensor> gate_up, act, dact;
  for (int i = 0; i < 2; ++i) {
    gate_up.push_back(pool.take(rows, 2 * feed_forward));
    act.push_back(pool.take(rows, feed_forward));
    dact.push_back(pool.take(rows, feed_forward));
  }
  auto at = [](int s) { return static_cast<std::size_t>(s % 2); };
  const double one = static_cast<double>(rows) * feed_forward * 2;
  report.time("swiglu_forward", 3 * one, true, [&](int s) { cuda::swiglu_forward(context, act[at(s)], gate_up[at(s)]); });
  report.time("swiglu_backward with act", 6 * one, true, [&](int s) { cuda::swiglu_backward(context, gate_up[at(s + 1)], act[at(s)], dact[at(s)], gate_up[at(s)]); });
  report.time("swiglu_backward, no act", 5 * one, true, [&](int s) { cuda::swiglu_backward(context, gate_up[at(s + 1)], {}, dact[at(s)], gate_up[at(s)]); });
  // In place, as training does. Repeated it shrinks its values, so it begins with fresh ones.
  fill<<<4096, 256, 0, context.stream()>>>(static_cast<Half*>(gate_up[0].data), nullptr, rows * 2 * feed_forward, 1, 1.f);
  fill<<<4096, 256, 0, context.stream()>>>(static_cast<Half*>(gate_up[1].data), nullptr, rows * 2 * feed_forward, 4, 1.f);
  report.time("swiglu_backward in place, no act", 5 * one, true, [&](int s) { cuda::swiglu_backward(context, gate_up[at(s)], {}, dact[at(s)], gate_up[at(s)]); });
}

// The parts of the embedding's backward pass, with the bytes of the whole of it.
template <class Shape>
void time_sum_runs(CudaContext& context, Report& report, const std::vector<cuda::Scatter<Half>>& arguments, double bytes) {
  const cuda::ScatterScratch layout(arguments[0].rows, width, Shape::window, Shape::threads * 4);
  report.time("  sums alone <" + std::to_string(Shape::threads) + ", window " + std::to_string(Shape::window) + ", " + std::to_string(Shape::ahead) +
                  " ahead, " + std::to_string(Shape::resident) + " resident>",
              bytes, false, [&](int set) {
                cuda::Scatter<Half> one = arguments[set % sets];
                one.pieces = layout.pieces;
                CHECK_CUDA(cudaMemsetAsync(one.arrivals, 0, static_cast<std::size_t>(layout.arrival_count) * 4, context.stream()));
                cuda::launch_sums<Half, 4, Shape>(context, one, layout);
              });
}

void time_embedding_backward(CudaContext& context, Report& report, const Tensor& gradient, const std::vector<Tensor>& dout, const std::int32_t* ids, double bytes) {
  const std::int64_t rows = dout[0].rows;
  const cuda::ScatterScratch most(rows, width, 16, 64 * 4);  // of the variants below
  Memory memory(most.bytes);
  report.time("  sort_rows", bytes, false, [&](int) { cuda::sort_rows(context, ids, rows, gradient.rows, memory.as<char>()); });
  report.time("  sort_rows_by_tiles", bytes, false, [&](int) { cuda::sort_rows_by_tiles(context, ids, rows, gradient.rows, memory.as<char>()); });
  const cuda::SortedRows sorted = cuda::sort_rows_by_tiles(context, ids, rows, gradient.rows, memory.as<char>());
  std::vector<cuda::Scatter<Half>> arguments;
  for (const Tensor& matrix : dout)
    arguments.push_back({.dtable = gradient.f32(),
                         .dout = static_cast<const Half*>(matrix.data),
                         .shares = reinterpret_cast<float*>(memory.as<char>() + most.shares),
                         .arrivals = reinterpret_cast<std::int32_t*>(memory.as<char>() + most.arrivals),
                         .sorted = sorted,
                         .dtable_stride = width,
                         .dout_stride = width,
                         .rows = rows,
                         .columns = width});
  time_sum_runs<cuda::SumShape<128, 32, 4, 8>>(context, report, arguments, bytes);
  time_sum_runs<cuda::SumShape<128, 16, 4, 8>>(context, report, arguments, bytes);
  time_sum_runs<cuda::SumShape<128, 32, 8, 5>>(context, report, arguments, bytes);
  time_sum_runs<cuda::SumShape<512, 16, 4, 2>>(context, report, arguments, bytes);
  time_sum_runs<cuda::SumShape<64, 32, 4, 16>>(context, report, arguments, bytes);
}

void time_embedding(CudaContext& context, Report& report, Pool& pool, std::int64_t rows) {
  constexpr std::int64_t vocabulary = 32000;
  Memory ids(static_cast<std::size_t>(rows) * 4), dtable(vocabulary * width * 4);
  CHECK_CUDA(cudaMemsetAsync(dtable.as<char>(), 0, vocabulary * width * 4, context.stream()));
  pool.rewind();
  const Tensor table = pool.take(vocabulary, width);
  std::vector<Tensor> matrices;
  for (int i = 0; i < sets; ++i) matrices.push_back(pool.take(rows, width));
  const Tensor gradient = matrix(dtable.as<float>(), vocabulary, width);
  auto of = [&](int s) { return matrices[static_cast<std::size_t>(s % sets)]; };
  const double one = static_cast<double>(rows) * width * 2;
  struct Kind {
    const char* name;
    bool zipf;
    unsigned vocabulary;
  };
  for (const Kind& kind : {Kind{"uniform ids", false, vocabulary}, {"ids as 1/rank", true, vocabulary}, {"one id", false, 1}}) {
    fill_ids<<<cuda::blocks_for(rows, 256), 256, 0, context.stream()>>>(ids.as<std::int32_t>(), rows, kind.vocabulary, 7, kind.zipf);
    std::vector<std::int32_t> host(static_cast<std::size_t>(rows));
    CHECK_CUDA(cudaMemcpyAsync(host.data(), ids.as<char>(), host.size() * 4, cudaMemcpyDeviceToHost, context.stream()));
    CHECK_CUDA(cudaStreamSynchronize(context.stream()));
    std::sort(host.begin(), host.end());
    const auto distinct = static_cast<double>(std::unique(host.begin(), host.end()) - host.begin());
    const std::string suffix = std::string(", ") + kind.name;
    // A table of uniform ids is larger than the cache: a row that comes again is read again.
    const bool rereads = kind.vocabulary > 1 && !kind.zipf;
    report.time("embedding_forward" + suffix + (rereads ? ", reads of all rows" : ""), one + (rereads ? one : distinct * width * 2), kind.vocabulary > 1,
                [&](int s) { cuda::embedding_forward(context, of(s), table, ids.as<std::int32_t>()); });
    report.time("embedding_backward" + suffix, one + distinct * width * 8, kind.vocabulary > 1,
                [&](int s) { cuda::embedding_backward(context, gradient, of(s), ids.as<std::int32_t>()); });
    time_embedding_backward(context, report, gradient, matrices, ids.as<std::int32_t>(), one + distinct * width * 8);
  }
}

template <int vectors, int resident>
void time_adamw(CudaContext& context, Report& report, const cuda::AdamWArrays& arrays) {
  const AdamWFactors factors{0.5f, 0.9f, 0.95f, 1 - 4e-5f, 4e-4f, 1.2f, 1e-8f};
  report.time("  adamw <" + std::to_string(vectors) + " vectors, " + std::to_string(resident) + " resident>", 34.0 * static_cast<double>(arrays.count), false,
              [&](int) {
                cuda::adamw_update<4, vectors, resident>
                    <<<cuda::blocks_for(arrays.count, 4 * vectors * 256), 256, 0, context.stream()>>>(arrays, factors);
                CHECK_LAUNCH("adamw_update");
              });
}

void time_optimizer(CudaContext& context, Report& report, std::int64_t count) {
  const auto bytes = static_cast<std::size_t>(count) * 4;
  Memory weights(bytes), first(bytes), second(bytes), gradients(bytes), rounded(bytes / 2), norm_sums(bytes / 4096 * 2 + 8);
  auto refill = [&] {
    unsigned seed = 10;
    for (const Memory* memory : {&weights, &first, &gradients}) fill<<<4096, 256, 0, context.stream()>>>(nullptr, memory->as<float>(), count, ++seed, 1e-2f);
    fill<<<4096, 256, 0, context.stream()>>>(nullptr, second.as<float>(), count, 20, 0.f);
  };
  refill();
  const double n = static_cast<double>(count);
  report.time("squared_norm", 4 * n, true, [&](int) { cuda::squared_norm(context, norm_sums.as<double>(), gradients.as<float>(), count); });
  report.time("add", 12 * n, true, [&](int) { cuda::add(context, weights.as<float>(), gradients.as<float>(), count); });
  report.time("round_weights", 6 * n, true, [&](int) { cuda::round_weights(context, rounded.as<Half>(), weights.as<float>(), count); });
  refill();
  const AdamWArguments arguments{4e-4f, 0.9f, 0.95f, 1e-8f, 0.1f, 100, 0.5f};
  report.time("adamw with rounded", 34 * n, true, [&](int) {
    cuda::adamw(context, weights.as<float>(), rounded.as<Half>(), first.as<float>(), second.as<float>(), gradients.as<float>(), count, arguments);
  });
  report.time("adamw, fp32 only", 32 * n, true, [&](int) {
    cuda::adamw(context, weights.as<float>(), nullptr, first.as<float>(), second.as<float>(), gradients.as<float>(), count, arguments);
  });
  const cuda::AdamWArrays arrays{weights.as<float>(), rounded.as<Half>(), first.as<float>(), second.as<float>(), gradients.as<float>(), count};
  time_adamw<1, 8>(context, report, arrays);
  time_adamw<2, 4>(context, report, arrays);
  time_adamw<2, 3>(context, report, arrays);
  time_adamw<4, 2>(context, report, arrays);
}

int run(std::int64_t rows, std::int64_t parameters) {
  CudaContext context(0);
  std::printf("%s, %d multiprocessors; %lld rows, %lld parameters\n", context.properties().name, context.multiprocessors(), static_cast<long long>(rows),
              static_cast<long long>(parameters));
  context.scratch(std::size_t{128} << 20);
  Report report(context);
  time_copies(context, report);
  {
    Pool pool(context, rows * feed_forward * 8 + 32000 * width);
    time_norms(context, report, pool, rows);
    time_rotary(context, report, pool, rows);
    time_swiglu(context, report, pool, rows);
    time_embedding(context, report, pool, rows);
  }
  time_optimizer(context, report, parameters);
  CHECK_CUDA(cudaDeviceSynchronize());
  return report.print();
}

}  // namespace
}  // namespace tinyllama

int main(int count, char** arguments) {
  try {
    return tinyllama::run(count > 1 ? std::atoll(arguments[1]) : 32768, (count > 2 ? std::atoll(arguments[2]) : 1100) * 1000000);
  } catch (const std::exception& error) {
    std::printf("FAILED: %s\n", error.what());
    return 1;
  }
}
