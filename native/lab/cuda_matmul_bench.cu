// Matrix products of TinyLlama-1.1B's training step on a GPU: the library's first algorithm, its timed plan, and our own kernels, and the row
// kernels of the loss.
//   cuda_matmul_bench [repeats, 20]
// Random data; the variants of a product take turns, so that clocks and temperature meet all alike; medians. Operands alternate between two
// sets, each larger than L2 but for the smallest weights.
#include <cuda_bf16.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "native/device/cuda/cublaslt_matmul.h"
#include "native/device/cuda/linear_loss.h"
#include "native/device/cuda/linear_loss_rows.cuh"
#include "native/device/cuda/own_matmul.h"

using namespace tinyllama;

namespace {

constexpr double ceiling_tflops = 790, ceiling_gigabytes = 4300;

class Memory {
 public:
  explicit Memory(std::size_t bytes) : bytes_(bytes) { CHECK_CUDA(cudaMalloc(&data_, bytes)); }
  ~Memory() { cudaFree(data_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  void* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  std::size_t bytes_;
};

// Roughly normal values of the given deviation.
template <class Element>
__global__ void fill(Element* to, std::int64_t count, std::uint32_t seed, float deviation) {
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
    float sum = 0;
    std::uint32_t bits = static_cast<std::uint32_t>(i) * 0x9e3779b1u ^ seed * 0x85ebca6bu;
    for (int draw = 0; draw < 4; ++draw) {
      bits = (bits ^ bits >> 15) * 0x2c1b3c6du;
      bits = (bits ^ bits >> 12) * 0x297a2d39u;
      bits ^= bits >> 15;
      sum += static_cast<float>(bits >> 8) * (1.f / (1 << 24)) - 0.5f;
    }
    to[i] = static_cast<Element>(sum * 1.732f * deviation);
  }
}

void fill_random(const Memory& memory, DataType type, std::uint32_t seed, float deviation) {
  if (type == DataType::f32)
    fill<<<2048, 256>>>(static_cast<float*>(memory.data()), static_cast<std::int64_t>(memory.bytes() / 4), seed, deviation);
  else
    fill<<<2048, 256>>>(static_cast<__nv_bfloat16*>(memory.data()), static_cast<std::int64_t>(memory.bytes() / 2), seed, deviation);
  CHECK_LAUNCH("fill");
  CHECK_CUDA(cudaDeviceSynchronize());
}

class Timer {
 public:
  explicit Timer(cudaStream_t stream) : stream_(stream) {
    CHECK_CUDA(cudaEventCreate(&start_));
    CHECK_CUDA(cudaEventCreate(&stop_));
  }
  ~Timer() {
    cudaEventDestroy(start_);
    cudaEventDestroy(stop_);
  }
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;
  double milliseconds(const std::function<void()>& work) {
    CHECK_CUDA(cudaEventRecord(start_, stream_));
    work();
    CHECK_CUDA(cudaEventRecord(stop_, stream_));
    CHECK_CUDA(cudaEventSynchronize(stop_));
    float time = 0;
    CHECK_CUDA(cudaEventElapsedTime(&time, start_, stop_));
    return static_cast<double>(time);
  }

 private:
  cudaStream_t stream_;
  cudaEvent_t start_ = nullptr, stop_ = nullptr;
};

double median(std::vector<double> times) {
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

struct Layer {
  const char* name;
  std::int64_t rows, inputs, outputs;
  int per_step;  // how often it is multiplied for 32768 tokens
};

struct Product {
  std::string name;
  std::int64_t m, n, k;
  Transpose ta, tb;
  DataType out_type;
  bool accumulate;
};

std::vector<Product> products_of(const Layer& layer) {
  const std::string name = std::string(layer.name) + " " + std::to_string(layer.rows);
  return {{name + " fwd", layer.rows, layer.outputs, layer.inputs, Transpose::no, Transpose::yes, DataType::bf16, false},
          {name + " dX", layer.rows, layer.inputs, layer.outputs, Transpose::no, Transpose::no, DataType::bf16, false},
          {name + " dW", layer.outputs, layer.inputs, layer.rows, Transpose::yes, Transpose::no, DataType::f32, true}};
}

struct Variant {
  std::string name;
  std::function<void(const Tensor&, const Tensor&, Transpose, const Tensor&, Transpose, bool)> multiply;
};

class ProductBench {
 public:
  ProductBench(CudaContext& context, int repeats) : context_(context), repeats_(repeats), timer_(context.stream()) {
    std::string reason;
    if (auto library = cublaslt::Library::find(reason)) {
      first_ = std::make_unique<cuda::CublasltMatmul>(context, std::move(library), cuda::PlanChoice::first_heuristic);
      timed_ = std::make_unique<cuda::CublasltMatmul>(context, cublaslt::Library::find(reason), cuda::PlanChoice::timed);
      variants_.push_back(engine("Lt first", *first_));
      variants_.push_back(engine("Lt timed", *timed_));
      std::printf("%s\n", timed_->describe().c_str());
    } else {
      std::printf("no cuBLASLt: %s\n", reason.c_str());
    }
    variants_.push_back(own("own", cuda::OwnTile::automatic));
  }

  void all_tiles() {
    variants_.pop_back();
    variants_.push_back(own("128x128x32", cuda::OwnTile::m128_n128_k32));
    variants_.push_back(own("128x256x32", cuda::OwnTile::m128_n256_k32));
    variants_.push_back(own("128x256x64", cuda::OwnTile::m128_n256_k64));
  }

  void header() const {
    std::printf("%-20s", "TFLOP/s (ms)");
    for (const Variant& variant : variants_) std::printf(" %16s", variant.name.c_str());
    std::printf("   timed/790\n");
  }

  // Milliseconds of each variant.
  std::vector<double> run(const Product& p) {
    const std::int64_t element_out = p.out_type == DataType::f32 ? 4 : 2;
    std::vector<std::unique_ptr<Memory>> a, b, out;
    for (std::uint32_t set = 0; set < 2; ++set) {
      a.push_back(std::make_unique<Memory>(static_cast<std::size_t>(p.m * p.k * 2)));
      b.push_back(std::make_unique<Memory>(static_cast<std::size_t>(p.k * p.n * 2)));
      out.push_back(std::make_unique<Memory>(static_cast<std::size_t>(p.m * p.n * element_out)));
      fill_random(*a.back(), DataType::bf16, 3 * set + 1, 1.f);
      fill_random(*b.back(), DataType::bf16, 3 * set + 2, 0.02f);
      fill_random(*out.back(), p.out_type, 3 * set + 3, 1.f);
    }
    const auto tensor = [](const Memory& memory, DataType type, std::int64_t rows, std::int64_t columns, bool turned) {
      if (turned) std::swap(rows, columns);
      return Tensor{memory.data(), type, rows, columns, columns};
    };
    std::vector<std::vector<double>> times(variants_.size());
    for (int repeat = -2; repeat < repeats_; ++repeat)
      for (std::size_t v = 0; v < variants_.size(); ++v) {
        const std::size_t set = static_cast<std::size_t>(repeat + 2) % 2;
        const double time = timer_.milliseconds([&] {
          variants_[v].multiply(tensor(*out[set], p.out_type, p.m, p.n, false), tensor(*a[set], DataType::bf16, p.m, p.k, p.ta == Transpose::yes), p.ta,
                                tensor(*b[set], DataType::bf16, p.k, p.n, p.tb == Transpose::yes), p.tb, p.accumulate);
        });
        if (repeat >= 0) times[v].push_back(time);
      }
    std::vector<double> medians;
    std::printf("%-20s", p.name.c_str());
    for (const auto& of : times) {
      medians.push_back(median(of));
      std::printf(" %7.0f (%6.3f)", tflops(p, medians.back()), medians.back());
    }
    std::printf("   %5.3f\n", tflops(p, medians[timed_ ? 1 : 0]) / ceiling_tflops);
    return medians;
  }

  static double tflops(const Product& p, double milliseconds) {
    return 2e-9 * static_cast<double>(p.m) * static_cast<double>(p.n) * static_cast<double>(p.k) / milliseconds;
  }
  const std::vector<Variant>& variants() const { return variants_; }
  cuda::CublasltMatmul* timed() const { return timed_.get(); }

 private:
  static Variant engine(const char* name, cuda::MatmulEngine& engine) {
    return {name, [&engine](const Tensor& out, const Tensor& a, Transpose ta, const Tensor& b, Transpose tb, bool accumulate) {
              engine.matmul(out, a, ta, b, tb, accumulate);
            }};
  }
  Variant own(const char* name, cuda::OwnTile tile) {
    return {name, [this, tile](const Tensor& out, const Tensor& a, Transpose ta, const Tensor& b, Transpose tb, bool accumulate) {
              cuda::own_matmul(context_, out, a, ta, b, tb, accumulate, tile);
            }};
  }

  CudaContext& context_;
  int repeats_;
  Timer timer_;
  std::unique_ptr<cuda::CublasltMatmul> first_, timed_;
  std::vector<Variant> variants_;
};

void products(CudaContext& context, int repeats) {
  ProductBench bench(context, repeats);
  bench.header();
  const Layer layers[] = {{"qkv", 32768, 2048, 2560, 22},      {"o", 32768, 2048, 2048, 22},        {"gate_up", 32768, 2048, 11264, 22},
                          {"down", 32768, 5632, 2048, 22},     {"head", 8192, 2048, 32000, 4},      {"qkv", 16384, 2048, 2560, 0},
                          {"o", 16384, 2048, 2048, 0},         {"gate_up", 16384, 2048, 11264, 0},  {"down", 16384, 5632, 2048, 0}};
  std::vector<double> step(bench.variants().size());
  double operations = 0;
  for (const Layer& layer : layers)
    for (const Product& product : products_of(layer)) {
      const auto times = bench.run(product);
      for (std::size_t v = 0; v < times.size(); ++v) step[v] += times[v] * layer.per_step;
      operations += 2e-9 * static_cast<double>(product.m) * static_cast<double>(product.n) * static_cast<double>(product.k) * layer.per_step;
    }
  std::printf("%-20s", "32768 tokens");
  for (const double time : step) std::printf(" %7.0f (%6.1f)", operations / time, time);
  std::printf("   all products of a micro-step, ms\n");
  if (bench.timed() != nullptr) {
    double cost = 0;
    std::printf("\nplans (first proposed -> chosen, us; cost of the choice, ms)\n");
    for (const auto& report : bench.timed()->reports()) {
      cost += report.choice_milliseconds;
      std::printf("  %-78s %2d %8.1f -> %8.1f %6.1f  %s (%s)\n", report.product.c_str(), report.candidates, report.first_microseconds,
                  report.best_microseconds, report.choice_milliseconds, report.algorithm.c_str(), report.source.c_str());
    }
    std::printf("  choice of %zu plans: %.0f ms\n", bench.timed()->reports().size(), cost);
  }
  std::printf("\nown kernel, every tile\n");
  bench.all_tiles();
  bench.header();
  for (const Layer& layer : {layers[0], layers[2], layers[3]})
    for (const Product& product : products_of(layer)) bench.run(product);
}

// A row kernel in place: the logits are restored before each run, outside the timing.
void rows_bench(CudaContext& context, int repeats, const char* name, DataType type, std::int64_t rows, std::int64_t vocabulary, double passes,
                const std::function<void(const cuda::LossRows&, cudaStream_t)>& kernel) {
  const std::size_t bytes = static_cast<std::size_t>(rows * vocabulary * (type == DataType::f32 ? 4 : 2));
  const Memory logits(bytes), original(bytes), losses(static_cast<std::size_t>(rows * 4)), scale(4), targets(static_cast<std::size_t>(rows * 4));
  fill_random(original, type, 9, 3.f);
  std::vector<std::int32_t> host(static_cast<std::size_t>(rows));
  for (std::size_t i = 0; i < host.size(); ++i) host[i] = static_cast<std::int32_t>(i * 7919 % static_cast<std::size_t>(vocabulary));
  const float one = 1.f / 32768;
  CHECK_CUDA(cudaMemcpy(targets.data(), host.data(), host.size() * 4, cudaMemcpyHostToDevice));
  CHECK_CUDA(cudaMemcpy(scale.data(), &one, 4, cudaMemcpyHostToDevice));
  CHECK_CUDA(cudaDeviceSynchronize());
  const cuda::LossRows arguments{logits.data(), vocabulary, static_cast<std::int32_t>(vocabulary), static_cast<float*>(losses.data()),
                                 static_cast<const std::int32_t*>(targets.data()), static_cast<const float*>(scale.data())};
  Timer timer(context.stream());
  std::vector<double> times;
  for (int repeat = -2; repeat < repeats; ++repeat) {
    CHECK_CUDA(cudaMemcpyAsync(logits.data(), original.data(), bytes, cudaMemcpyDeviceToDevice, context.stream()));
    const double time = timer.milliseconds([&] { kernel(arguments, context.stream()); });
    CHECK_LAUNCH(name);
    if (repeat >= 0) times.push_back(time);
  }
  const double gigabytes = passes * static_cast<double>(bytes) / median(times) * 1e-6;
  std::printf("%-34s %8.3f ms %7.0f GB/s %5.3f of %.0f\n", name, median(times), gigabytes, gigabytes / ceiling_gigabytes, ceiling_gigabytes);
}

template <class Element, int threads, int vectors, int blocks>
void in_registers(const cuda::LossRows& rows, cudaStream_t stream) {
  cuda::loss_in_registers<Element, threads, vectors, blocks><<<8192, threads, 0, stream>>>(rows);
}

void row_kernels(CudaContext& context, int repeats) {
  using bf16 = __nv_bfloat16;
  constexpr std::int64_t rows = 8192, vocabulary = 32000;
  std::printf("\nrows of the loss, %lld x %lld, one read and one write counted\n", static_cast<long long>(rows), static_cast<long long>(vocabulary));
  const auto bench = [&](const char* name, DataType type, double passes, const auto& kernel) {
    rows_bench(context, repeats, name, type, rows, vocabulary, passes, kernel);
  };
  bench("bf16 512 threads x 8, 2 a SM", DataType::bf16, 2, in_registers<bf16, 512, 8, 2>);
  bench("bf16 512 threads x 8, 1 a SM", DataType::bf16, 2, in_registers<bf16, 512, 8, 1>);
  bench("bf16 1024 threads x 4", DataType::bf16, 2, in_registers<bf16, 1024, 4, 1>);
  bench("bf16 256 threads x 16, 2 a SM", DataType::bf16, 2, in_registers<bf16, 256, 16, 2>);
  bench("bf16 256 threads x 16, 3 a SM", DataType::bf16, 2, in_registers<bf16, 256, 16, 3>);
  bench("bf16 in passes", DataType::bf16, 2, [](const cuda::LossRows& r, cudaStream_t s) { cuda::loss_in_passes<bf16><<<8192, 1024, 0, s>>>(r); });
  bench("f32 1024 threads x 8", DataType::f32, 2, in_registers<float, 1024, 8, 1>);
  bench("f32 512 threads x 16", DataType::f32, 2, in_registers<float, 512, 16, 1>);
  bench("f32 in passes", DataType::f32, 2, [](const cuda::LossRows& r, cudaStream_t s) { cuda::loss_in_passes<float><<<8192, 1024, 0, s>>>(r); });
  const Memory greedy(rows);
  bench("f32 log-probability", DataType::f32, 1, [&](const cuda::LossRows& r, cudaStream_t s) {
    cuda::log_probability_rows<float><<<8192, 512, 0, s>>>(static_cast<const float*>(r.logits), r.stride, r.vocabulary, r.losses,
                                                           static_cast<std::uint8_t*>(greedy.data()), r.targets);
  });
}

void whole_loss(CudaContext& context, int repeats) {
  constexpr std::int64_t rows = 32768, width = 2048, vocabulary = 32000;
  const auto engine = cuda::make_matmul_engine(context);
  const Memory hidden(rows * width * 2), dhidden(rows * width * 2), weight(vocabulary * width * 2), dweight(vocabulary * width * 4), losses(rows * 4),
      targets(rows * 4), scale(4);
  fill_random(hidden, DataType::bf16, 1, 1.f), fill_random(weight, DataType::bf16, 2, 0.02f), fill_random(dweight, DataType::f32, 3, 1e-3f);
  CHECK_CUDA(cudaMemset(targets.data(), 0, targets.bytes()));
  const float one = 1.f / 32768;
  CHECK_CUDA(cudaMemcpy(scale.data(), &one, 4, cudaMemcpyHostToDevice));
  CHECK_CUDA(cudaDeviceSynchronize());
  const auto tensor = [](const Memory& memory, DataType type, std::int64_t r, std::int64_t c) { return Tensor{memory.data(), type, r, c, c}; };
  Timer timer(context.stream());
  std::vector<double> times;
  for (int repeat = -2; repeat < repeats / 2; ++repeat) {
    const double time = timer.milliseconds([&] {
      cuda::linear_cross_entropy(context, *engine, static_cast<float*>(losses.data()), tensor(dhidden, DataType::bf16, rows, width),
                                 tensor(dweight, DataType::f32, vocabulary, width), tensor(hidden, DataType::bf16, rows, width),
                                 tensor(weight, DataType::bf16, vocabulary, width), static_cast<const std::int32_t*>(targets.data()),
                                 static_cast<const float*>(scale.data()));
    });
    if (repeat >= 0) times.push_back(time);
  }
  const double operations = 6e-9 * rows * width * vocabulary;
  std::printf("linear cross entropy, %lld rows: %.2f ms, %.0f TFLOP/s of its products, scratch %.0f MB\n", static_cast<long long>(rows), median(times),
              operations / median(times), static_cast<double>(context.scratch_bytes()) * 1e-6);
}

}  // namespace

int main(int count, char** arguments) try {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  const int repeats = count > 1 ? std::max(std::atoi(arguments[1]), 2) : 20;
  CudaContext context(0);
  std::printf("%s, %d multiprocessors\n", context.properties().name, context.multiprocessors());
  products(context, repeats);
  row_kernels(context, repeats);
  whole_loss(context, repeats);
  return 0;
} catch (const std::exception& error) {
  std::printf("FAILED with %s\n", error.what());
  return 1;
}
