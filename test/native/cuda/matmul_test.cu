// Matrix products on a GPU against fp64 on the CPU: every transposition, type and kind of output, sizes that fit no tile, views with gaps and
// odd addresses, by our own kernels (each tile) and by cuBLASLt; then the life of plans: kept in a file, read again, refused, in a capture.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>

#include "native/device/cuda/cublaslt_matmul.h"
#include "native/device/cuda/own_matmul.h"
#include "test/native/cuda/matmul_values.h"

using namespace tinyllama;
using namespace tinyllama::check;
using cuda::MatmulEngine;

namespace {

using Multiply = std::function<void(const Tensor&, const Tensor&, Transpose, const Tensor&, Transpose, bool)>;

struct Case {
  std::int64_t m, n, k;
  std::int64_t pad;     // of the strides
  std::int64_t offset;  // in front of each matrix, in elements
  bool wide = false;
};

std::vector<float> transposed(const std::vector<float>& values, std::int64_t rows, std::int64_t columns) {
  std::vector<float> result(values.size());
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t c = 0; c < columns; ++c) result[static_cast<std::size_t>(c * rows + r)] = values[static_cast<std::size_t>(r * columns + c)];
  return result;
}

// What out is, in fp64, and the sum of the magnitudes of its terms, which bounds what rounding can do.
struct Reference {
  std::vector<double> sums, magnitudes;
  Reference(const Case& c, const std::vector<float>& a, const std::vector<float>& b) : sums(static_cast<std::size_t>(c.m * c.n)), magnitudes(sums) {
    for (std::int64_t i = 0; i < c.m; ++i)
      for (std::int64_t k = 0; k < c.k; ++k) {
        const double left = a[static_cast<std::size_t>(i * c.k + k)];
        for (std::int64_t j = 0; j < c.n; ++j) {
          const double term = left * static_cast<double>(b[static_cast<std::size_t>(k * c.n + j)]);
          sums[static_cast<std::size_t>(i * c.n + j)] += term;
          magnitudes[static_cast<std::size_t>(i * c.n + j)] += std::abs(term);
        }
      }
  }
};

double worst_share = 0;  // of the tolerance, over all comparisons

// fp32 sums of at most some thousand terms, whose rounding errors mostly cancel: 1e-5 of the magnitudes. bf16 adds half its last place.
bool near(float got, double want, double magnitude, DataType type) {
  const double limit = 1e-5 * magnitude + (type == DataType::bf16 ? std::abs(want) / 250 : 1e-7 * std::abs(want)) + 1e-30;
  const double error = std::abs(static_cast<double>(got) - want);
  if (std::isfinite(got)) worst_share = std::max(worst_share, error / limit);
  return std::isfinite(got) && error <= limit;
}

void run_case(const std::string& engine, const Multiply& multiply, const Case& c, DataType type, DataType out_type, bool ta, bool tb, bool accumulate,
              const std::vector<float>& a, const std::vector<float>& b, const Reference& reference, const std::vector<float>& old) {
  const auto make = [&](DataType of, std::int64_t rows, std::int64_t columns) {
    return DeviceMatrix(of, rows, columns, columns + c.pad, c.offset);
  };
  DeviceMatrix left = ta ? make(type, c.k, c.m) : make(type, c.m, c.k), right = tb ? make(type, c.n, c.k) : make(type, c.k, c.n);
  DeviceMatrix out = make(out_type, c.m, c.n);
  const std::vector<float> stored_a = ta ? transposed(a, c.m, c.k) : a, stored_b = tb ? transposed(b, c.k, c.n) : b;
  left.fill(&stored_a);
  right.fill(&stored_b);
  out.fill(accumulate ? &old : nullptr);
  const std::string name = engine + ": " + (ta ? "T" : "N") + (tb ? "T" : "N") + (type == DataType::f32 ? " f32 " : " bf16 ") + std::to_string(c.m) +
                           "x" + std::to_string(c.n) + "x" + std::to_string(c.k) + " pad " + std::to_string(c.pad) + " offset " +
                           std::to_string(c.offset) + (out_type == DataType::f32 ? " -> f32" : " -> bf16") + (accumulate ? " +=" : "");
  const auto transpose = [](bool yes) { return yes ? Transpose::yes : Transpose::no; };
  const auto run = [&] { multiply(out.tensor(), left.tensor(), transpose(ta), right.tensor(), transpose(tb), accumulate); };
  run();
  const auto first = out.read();
  out.restore();
  run();
  const auto second = out.read();
  std::int64_t wrong = 0, at = 0;
  for (std::int64_t i = 0; i < c.m * c.n; ++i) {
    const auto index = static_cast<std::size_t>(i);
    const double before = accumulate ? static_cast<double>(old[index]) : 0;
    if (!near(out.get(first, i / c.n, i % c.n), reference.sums[index] + before, reference.magnitudes[index] + std::abs(before), out_type) && wrong++ == 0)
      at = i;
  }
  expect(wrong == 0, name + ": " + std::to_string(wrong) + " elements are off, the first at " + std::to_string(at / c.n) + "," +
                         std::to_string(at % c.n) + ": " + std::to_string(out.get(first, at / c.n, at % c.n)) + " for " +
                         std::to_string(reference.sums[static_cast<std::size_t>(at)]) + (accumulate ? " + " + std::to_string(old[static_cast<std::size_t>(at)]) : ""));
  expect(first == second, name + ": a second run gives other bits");
  expect(out.untouched_around(first), name + ": writes outside the matrix");
}

void small_products(const std::string& engine, const Multiply& multiply) {
  const Case cases[] = {{128, 256, 64, 0, 0},  {1, 1, 1, 0, 0},        {7, 5, 3, 1, 1},           {129, 257, 33, 0, 0}, {200, 136, 72, 8, 8, true},
                        {64, 320, 100, 3, 1},  {300, 40, 513, 4, 0},   {256, 512, 128, 16, 0},    {130, 264, 96, 2, 2}, {17, 130, 1000, 0, 0, true}};
  std::uint64_t seed = 1;
  for (const Case& c : cases)
    for (const DataType type : {DataType::bf16, DataType::f32}) {
      std::vector<float> a = values(c.m * c.k, ++seed, c.wide), b = values(c.k * c.n, ++seed, c.wide), old = values(c.m * c.n, ++seed, c.wide);
      if (type == DataType::bf16) round_to_bf16(a), round_to_bf16(b), round_to_bf16(old);
      const Reference reference(c, a, b);
      for (const DataType out_type : {DataType::f32, DataType::bf16}) {
        if (type == DataType::f32 && out_type == DataType::bf16) continue;
        for (const bool ta : {false, true})
          for (const bool tb : {false, true})
            for (const bool accumulate : {false, true})
              run_case(engine, multiply, c, type, out_type, ta, tb, accumulate, a, b, reference, old);
      }
    }
}

// Sizes of a training step: some elements of each, in fp64.
void large_products(const std::string& engine, const Multiply& multiply) {
  struct Large {
    std::int64_t m, n, k;
    bool ta, tb, accumulate;
    DataType type, out_type;
  };
  const Large cases[] = {{4096, 2560, 2048, false, true, false, DataType::bf16, DataType::bf16},
                         {4096, 2048, 5632, false, false, false, DataType::bf16, DataType::bf16},
                         {2560, 2048, 8192, true, false, true, DataType::bf16, DataType::f32},
                         {1000, 32000, 512, false, true, false, DataType::bf16, DataType::f32},
                         {1024, 1536, 2048, false, true, false, DataType::f32, DataType::f32}};
  for (const Large& c : cases) {
    std::vector<float> a = values(c.m * c.k, 71), b = values(c.k * c.n, 72), old = values(c.m * c.n, 73);
    if (c.type == DataType::bf16) round_to_bf16(a), round_to_bf16(b);
    const auto plain = [](DataType type, std::int64_t rows, std::int64_t columns) { return DeviceMatrix(type, rows, columns, columns, 0); };
    DeviceMatrix left = c.ta ? plain(c.type, c.k, c.m) : plain(c.type, c.m, c.k), right = c.tb ? plain(c.type, c.n, c.k) : plain(c.type, c.k, c.n);
    DeviceMatrix out = plain(c.out_type, c.m, c.n);
    left.fill(&a);  // as stored: the values are random either way
    right.fill(&b);
    out.fill(c.accumulate ? &old : nullptr);
    const auto run = [&] {
      multiply(out.tensor(), left.tensor(), c.ta ? Transpose::yes : Transpose::no, right.tensor(), c.tb ? Transpose::yes : Transpose::no, c.accumulate);
    };
    run();
    const auto first = out.read();
    out.restore();
    run();
    const auto second = out.read();
    std::int64_t wrong = 0, poisoned = 0;
    for (std::int64_t sample = 0; sample < 2000; ++sample) {
      const std::int64_t i = static_cast<std::int64_t>(mix(static_cast<std::uint64_t>(sample) * 2 + 5) % static_cast<std::uint64_t>(c.m));
      const std::int64_t j = static_cast<std::int64_t>(mix(static_cast<std::uint64_t>(sample) * 2 + 6) % static_cast<std::uint64_t>(c.n));
      double sum = c.accumulate ? static_cast<double>(old[static_cast<std::size_t>(i * c.n + j)]) : 0, magnitude = std::abs(sum);
      for (std::int64_t k = 0; k < c.k; ++k) {
        const double term = static_cast<double>(a[static_cast<std::size_t>(c.ta ? k * c.m + i : i * c.k + k)]) *
                            static_cast<double>(b[static_cast<std::size_t>(c.tb ? j * c.k + k : k * c.n + j)]);
        sum += term;
        magnitude += std::abs(term);
      }
      wrong += !near(out.get(first, i, j), sum, magnitude, c.out_type);
    }
    for (std::int64_t i = 0; i < c.m; ++i)
      for (std::int64_t j = 0; j < c.n; ++j) poisoned += !std::isfinite(out.get(first, i, j));
    const std::string name = engine + ": " + std::to_string(c.m) + "x" + std::to_string(c.n) + "x" + std::to_string(c.k);
    expect(wrong == 0 && poisoned == 0, name + ": " + std::to_string(wrong) + " of 2000 elements are off, " + std::to_string(poisoned) + " are not finite");
    expect(first == second, name + ": a second run gives other bits");
  }
}

void refusals(MatmulEngine& engine) {
  DeviceMatrix a(DataType::f32, 4, 8, 8, 0), b(DataType::f32, 9, 4, 4, 0), out(DataType::f32, 4, 4, 4, 0);
  bool refused = false;
  try {
    engine.matmul(out.tensor(), a.tensor(), Transpose::no, b.tensor(), Transpose::no, false);
  } catch (const Error&) {
    refused = true;
  }
  expect(refused, "sizes that do not fit are refused");
}

std::unique_ptr<cuda::CublasltMatmul> open_library(CudaContext& context) {
  std::string reason;
  auto library = cublaslt::Library::find(reason);
  if (library == nullptr) std::printf("cuBLASLt is not tested here: %s\n", reason.c_str());
  return library == nullptr ? nullptr : std::make_unique<cuda::CublasltMatmul>(context, std::move(library), cuda::PlanChoice::timed);
}

struct PlanTrial {
  DeviceMatrix a{DataType::bf16, 512, 768, 768, 0}, b{DataType::bf16, 1024, 768, 768, 0}, out{DataType::f32, 512, 1024, 1024, 0};
  PlanTrial() {
    const auto left = values(512 * 768, 5), right = values(1024 * 768, 6);
    a.fill(&left);
    b.fill(&right);
    out.fill(nullptr);
  }
  std::vector<unsigned char> run(MatmulEngine& engine) {
    out.restore();
    engine.matmul(out.tensor(), a.tensor(), Transpose::no, b.tensor(), Transpose::yes, false);
    return out.read();
  }
};

void life_of_plans(CudaContext& context, const std::filesystem::path& folder) {
  PlanTrial trial;
  const auto cache = folder / "plans";
  setenv("TINYLLAMA_PLAN_CACHE", cache.c_str(), 1);
  auto timed = open_library(context);
  const auto first = trial.run(*timed);
  expect(timed->reports().size() == 1 && timed->reports()[0].source == "timed", "a new product is timed");
  auto again = open_library(context);
  expect(trial.run(*again) == first, "a later process gets the same bits");
  expect(again->reports()[0].source == "plan file" && again->reports()[0].algorithm == timed->reports()[0].algorithm, "the plan is read from the file");

  // A line that a crash cut off, and one whose algorithm the library refuses.
  const auto file = std::filesystem::directory_iterator(cache)->path();
  {
    std::ofstream text(file, std::ios::trunc);
    text << again->reports()[0].product << " | 00ff";
  }
  auto anew = open_library(context);
  trial.run(*anew);
  expect(anew->reports()[0].source == "timed", "a line cut off is not a plan");
  std::filesystem::remove(file);
  MatmulPlanFile spoiled(file.string());
  spoiled.keep(again->reports()[0].product, {~0ULL, ~0ULL, ~0ULL, ~0ULL, ~0ULL, ~0ULL, ~0ULL, ~0ULL});
  auto wary = open_library(context);
  trial.run(*wary);
  expect(wary->reports()[0].source == "timed" && wary->describe().find("refused") != std::string::npos, "a refused plan is timed anew: " + wary->describe());

  setenv("TINYLLAMA_PLAN_CACHE", "/proc/no/such/folder", 1);
  auto unkept = open_library(context);
  trial.run(*unkept);
  expect(unkept->describe().find("not kept") != std::string::npos, "describe() says that plans cannot be kept: " + unkept->describe());

  // In a capture: no timing, no write, the right result.
  auto captured = open_library(context);
  const auto expected = trial.run(*unkept);
  trial.out.restore();
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  CHECK_CUDA(cudaStreamBeginCapture(context.stream(), cudaStreamCaptureModeThreadLocal));
  captured->matmul(trial.out.tensor(), trial.a.tensor(), Transpose::no, trial.b.tensor(), Transpose::yes, false);
  CHECK_CUDA(cudaStreamEndCapture(context.stream(), &graph));
  CHECK_CUDA(cudaGraphInstantiate(&executable, graph, 0));
  CHECK_CUDA(cudaGraphLaunch(executable, context.stream()));
  const auto replayed = trial.out.read();
  double apart = 0;
  for (std::int64_t i = 0; i < 512; ++i)
    for (std::int64_t j = 0; j < 1024; ++j)
      apart = std::max(apart, static_cast<double>(std::abs(trial.out.get(replayed, i, j) - trial.out.get(expected, i, j))));
  expect(apart < 1e-3, "a captured product is right: apart by " + std::to_string(apart));
  expect(captured->reports()[0].source == "first heuristic" && captured->describe().find("captured") != std::string::npos,
         "a plan chosen in a capture is said to be: " + captured->describe());
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
}

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

}  // namespace

int main() try {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  CudaContext context(0);
  const auto folder = std::filesystem::temp_directory_path() / ("matmul-test-" + std::to_string(getpid()));
  std::filesystem::create_directories(folder);
  setenv("TINYLLAMA_PLAN_CACHE", folder.c_str(), 1);
  std::printf("%s\n%-16s %8s %8s %14s %8s\n", context.properties().name, "engine", "checks", "failed", "worst error/limit", "seconds");

  const auto measure = [&](const std::string& name, const std::function<void()>& work) {
    const int before = checks, failed = failures;
    const double start = seconds();
    worst_share = 0;
    work();
    std::printf("%-16s %8d %8d %14.3f %8.1f\n", name.c_str(), checks - before, failures - failed, worst_share, seconds() - start);
  };
  const std::pair<const char*, cuda::OwnTile> tiles[] = {{"own", cuda::OwnTile::automatic},
                                                         {"own 128x128x32", cuda::OwnTile::m128_n128_k32},
                                                         {"own 128x256x32", cuda::OwnTile::m128_n256_k32},
                                                         {"own 128x256x64", cuda::OwnTile::m128_n256_k64}};
  for (const auto& [name, tile] : tiles) {
    const Multiply multiply = [&, tile = tile](const Tensor& out, const Tensor& a, Transpose ta, const Tensor& b, Transpose tb, bool accumulate) {
      cuda::own_matmul(context, out, a, ta, b, tb, accumulate, tile);
    };
    measure(name, [&, name = name] {
      small_products(name, multiply);
      large_products(name, multiply);
    });
  }
  const auto own = cuda::make_own_matmul_engine(context, "a test");
  refusals(*own);
  if (auto library = open_library(context)) {
    const Multiply multiply = [&](const Tensor& out, const Tensor& a, Transpose ta, const Tensor& b, Transpose tb, bool accumulate) {
      library->matmul(out, a, ta, b, tb, accumulate);
    };
    measure("cuBLASLt", [&] {
      small_products("cuBLASLt", multiply);
      large_products("cuBLASLt", multiply);
    });
    int declined = 0;
    for (const auto& report : library->reports()) {
      declined += report.source == "own kernel";
      expect(report.algorithm.find("scheme 1") == std::string::npos && report.algorithm.find("scheme 4") == std::string::npos,
             "no algorithm that adds in the output: " + report.product + " " + report.algorithm);
    }
    std::printf("%s: %zu plans, %d declined by the library\n", library->describe().c_str(), library->reports().size(), declined);
    measure("plans", [&] { life_of_plans(context, folder); });
  }
  std::filesystem::remove_all(folder);
  std::printf("matmul_test: %d checks, %d failed\n", checks, failures);
  return failures == 0 ? 0 : 1;
} catch (const std::exception& error) {
  std::printf("FAILED with %s\n", error.what());
  return 1;
}
