#include "native/device/cuda/cublaslt_matmul.h"

#include <cuda_bf16.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <limits>
#include <utility>

#include "native/device/cuda/own_matmul.h"
#include "native/device/cuda/scratch_sizes.h"

namespace tinyllama::cuda {
namespace {

using namespace cublaslt;

constexpr std::size_t workspace_bytes = matmul_workspace_bytes;
constexpr int most_candidates = 16;
constexpr int timed_rounds = 4;              // after the first one, for those that are still in the race
constexpr double race_margin = 1.15;         // of the fastest of the first round
constexpr double tie = 1.005;                // within it, the library's own order decides: fewer choices then hang on noise
constexpr double choice_milliseconds = 130;  // per product; past it no further round is begun

double milliseconds_now() {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// The largest of 256, 16 and the powers of two below that divides the address. No kernel's vectors or bulk copies ask for a value between, and a
// plan for each would be timed anew.
std::uint32_t alignment_of(const void* pointer) {
  const auto address = reinterpret_cast<std::uintptr_t>(pointer);
  if (address % 256 == 0) return 256;
  std::uint32_t alignment = 16;
  while (address % alignment != 0) alignment /= 2;
  return alignment;
}

int data_type(DataType type) { return type == DataType::f32 ? data_32f : data_16bf; }
std::int64_t element_bytes(int type) { return type == data_32f ? 4 : 2; }

// Where cuBLASLt 13.1 adds into a bf16 output, its Hopper kernels round the product to bf16 before they add it to the old value and round again
// (measured on an H200: every element was bf16(bf16(a·b) + old)); with cancellation that is many units in the last place. Neither a heuristic's
// attribute nor a preference tells such an algorithm from one that adds in fp32.
bool rounds_twice(const Tensor& out, bool accumulate) { return accumulate && out.type == DataType::bf16; }

bool capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  CHECK_CUDA(cudaStreamIsCapturing(stream, &status));
  return status != cudaStreamCaptureStatusNone;
}

// Uniform in [-1, 1): zeros would be faster than real data, since fewer bits toggle.
template <class Element>
__global__ void fill_random(Element* to, std::int64_t count, std::uint32_t seed) {
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
    std::uint32_t bits = (static_cast<std::uint32_t>(i) ^ seed) * 0x9e3779b1u;
    bits = (bits ^ bits >> 15) * 0x85ebca6bu;
    bits = (bits ^ bits >> 13) * 0xc2b2ae35u;
    bits ^= bits >> 16;
    to[i] = static_cast<Element>(static_cast<float>(bits >> 8) * (2.f / (1 << 24)) - 1.f);
  }
}

// Memory for timing, or null where the GPU has none left.
class Scratch {
 public:
  Scratch(std::int64_t elements, int type) : elements_(elements), type_(type) {
    if (cudaMalloc(&data_, static_cast<std::size_t>(elements * element_bytes(type))) == cudaSuccess) return;
    cudaGetLastError();  // clears it
    data_ = nullptr;
  }
  ~Scratch() { cudaFree(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  void* data() const { return data_; }
  void fill(cudaStream_t stream, std::uint32_t seed) const {
    if (type_ == data_32f)
      fill_random<<<1024, 256, 0, stream>>>(static_cast<float*>(data_), elements_, seed);
    else
      fill_random<<<1024, 256, 0, stream>>>(static_cast<__nv_bfloat16*>(data_), elements_, seed);
    CHECK_LAUNCH("fill_random");
  }

 private:
  void* data_ = nullptr;
  std::int64_t elements_;
  int type_;
};

class Event {
 public:
  Event() { CHECK_CUDA(cudaEventCreate(&event_)); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

double median(std::vector<float> values) {
  std::sort(values.begin(), values.end());
  return values.empty() ? std::numeric_limits<double>::infinity() : static_cast<double>(values[values.size() / 2]);
}

MatmulPlanFile::Algorithm stored_form(const Algorithm& algorithm) {
  MatmulPlanFile::Algorithm words;
  std::copy(std::begin(algorithm.data), std::end(algorithm.data), words.begin());
  return words;
}

Algorithm library_form(const MatmulPlanFile::Algorithm& words) {
  Algorithm algorithm;
  std::copy(words.begin(), words.end(), algorithm.data);
  return algorithm;
}

}  // namespace

// The library's descriptions of a product, and the algorithm chosen for it.
struct CublasltMatmul::Plan {
  Plan(const Library& library, const Product& product) : functions(library.functions()) {
    try {
      library.check(functions.cublasLtMatmulDescCreate(&description, compute_32f, data_32f), "cublasLtMatmulDescCreate");
      set(library, description_transpose_a, product.transpose_a);
      set(library, description_transpose_b, product.transpose_b);
      const auto layout = [&](Layout& to, int type, bool transposed, std::int64_t rows, std::int64_t columns, std::int64_t leading) {
        if (transposed) std::swap(rows, columns);
        library.check(functions.cublasLtMatrixLayoutCreate(&to, type, static_cast<std::uint64_t>(rows), static_cast<std::uint64_t>(columns), leading),
                      "cublasLtMatrixLayoutCreate");
      };
      layout(a, product.type, product.transpose_a, product.rows, product.inner, product.leading_a);
      layout(b, product.type, product.transpose_b, product.inner, product.columns, product.leading_b);
      layout(out, product.out_type, false, product.rows, product.columns, product.leading_out);
    } catch (...) {
      destroy();
      throw;
    }
  }
  ~Plan() { destroy(); }
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;

  void set(const Library& library, int attribute, bool transposed) const {
    const std::int32_t operation = transposed ? operation_transpose : operation_none;
    library.check(functions.cublasLtMatmulDescSetAttribute(description, attribute, &operation, sizeof operation),
                  "cublasLtMatmulDescSetAttribute");
  }
  void destroy() {
    for (const Layout layout : {a, b, out})
      if (layout != nullptr) functions.cublasLtMatrixLayoutDestroy(layout);
    if (description != nullptr) functions.cublasLtMatmulDescDestroy(description);
  }

  const Functions& functions;
  Description description = nullptr;
  Layout a = nullptr, b = nullptr, out = nullptr;
  bool declined = false;  // the library has no algorithm for it
  Algorithm algorithm{};
};

std::string CublasltMatmul::Product::name() const {
  // Of the row-major product, whose first operand is B here.
  char text[240];
  std::snprintf(text, sizeof text, "%c%c %s %lldx%lldx%lld -> %s%s, strides %lld %lld %lld, aligned %u %u %u", transpose_b ? 'T' : 'N',
                transpose_a ? 'T' : 'N', type == data_32f ? "f32" : "bf16", static_cast<long long>(columns), static_cast<long long>(rows),
                static_cast<long long>(inner), out_type == data_32f ? "f32" : "bf16", accumulate ? " +=" : "",
                static_cast<long long>(leading_b), static_cast<long long>(leading_a), static_cast<long long>(leading_out), alignment_b,
                alignment_a, alignment_out);
  return text;
}

CublasltMatmul::CublasltMatmul(CudaContext& context, std::unique_ptr<Library> library, PlanChoice choice)
    : context_(context),
      library_(std::move(library)),
      choice_(choice),
      file_(MatmulPlanFile::place(std::string(context.properties().name) + "-" + std::to_string(context.multiprocessors()),
                                  library_->version())),
      own_(make_own_matmul_engine(context, "")) {
  library_->check(library_->functions().cublasLtCreate(&handle_), "cublasLtCreate");
  const cudaError_t status = cudaMalloc(&workspace_, workspace_bytes);
  if (status != cudaSuccess) library_->functions().cublasLtDestroy(handle_);
  CHECK_CUDA(status);
}

CublasltMatmul::~CublasltMatmul() {
  cudaStreamSynchronize(context_.stream());  // products in flight read the workspace
  plans_.clear();
  library_->functions().cublasLtDestroy(handle_);
  cudaFree(workspace_);
}

std::string CublasltMatmul::describe() const {
  std::string text = "cuBLASLt " + library_->version() + " (" + library_->path() + ")";
  if (choice_ == PlanChoice::first_heuristic) return text + ", first heuristics";
  if (file_.problem().empty())
    text += ", plans in " + file_.file();
  else
    text += ", plans not kept (" + file_.problem() + "): a resumed run may differ in last bits";
  if (unusable_stored_ > 0) text += ", " + std::to_string(unusable_stored_) + " kept plans were refused by the library and timed anew";
  if (chosen_in_capture_ > 0)
    text += ", " + std::to_string(chosen_in_capture_) + " plans chosen while a graph was captured, hence untimed";
  return text;
}

std::size_t CublasltMatmul::memory() const { return workspace_bytes; }

void CublasltMatmul::matmul(const Tensor& out, const Tensor& a, Transpose transpose_a, const Tensor& b, Transpose transpose_b,
                            bool accumulate) {
  check_product(out, a, transpose_a, b, transpose_b);
  if (out.rows == 0 || out.columns == 0) return;
  const std::int64_t inner = transpose_a == Transpose::yes ? a.rows : a.columns;
  if (inner == 0 || rounds_twice(out, accumulate)) return own_->matmul(out, a, transpose_a, b, transpose_b, accumulate);
  // A row-major matrix is its transpose in column-major order, and outᵀ = op(b)ᵀ · op(a)ᵀ: the operands change places, and each keeps its
  // Transpose, since it is turned once by the order and once by the formula.
  const Product product{data_type(a.type),
                        data_type(out.type),
                        transpose_b == Transpose::yes,
                        transpose_a == Transpose::yes,
                        accumulate,
                        out.columns,
                        out.rows,
                        inner,
                        b.stride,
                        a.stride,
                        out.stride,
                        alignment_of(b.data),
                        alignment_of(a.data),
                        alignment_of(out.data)};
  const Operands operands{out.data, b.data, a.data};
  const Plan& chosen = plan(product, operands);
  if (chosen.declined) return own_->matmul(out, a, transpose_a, b, transpose_b, accumulate);
  library_->check(launch(chosen, product, operands, chosen.algorithm), "cublasLtMatmul");
}

cublaslt::Status CublasltMatmul::launch(const Plan& plan, const Product& product, const Operands& operands, const Algorithm& algorithm) const {
  const float one = 1.f, beta = product.accumulate ? 1.f : 0.f;  // read during the call
  return library_->functions().cublasLtMatmul(handle_, plan.description, &one, operands.a, plan.a, operands.b, plan.b, &beta, operands.out,
                                              plan.out, operands.out, plan.out, &algorithm, workspace_, workspace_bytes, context_.stream());
}

CublasltMatmul::Plan& CublasltMatmul::plan(const Product& product, const Operands& operands) {
  if (const auto found = plans_.find(product); found != plans_.end()) return *found->second;
  auto made = std::make_unique<Plan>(*library_, product);
  choose(*made, product, operands);
  return *plans_.emplace(product, std::move(made)).first->second;
}

void CublasltMatmul::choose(Plan& plan, const Product& product, const Operands& operands) {
  const double start = milliseconds_now();
  PlanReport report;
  report.product = product.name();
  HeuristicResult result{};
  const auto* stored = choice_ == PlanChoice::timed ? file_.find(report.product) : nullptr;
  if (stored != nullptr && usable(plan, *stored, result)) {
    report.source = "plan file";
  } else if (const auto candidates = propose(plan, product); candidates.empty()) {
    plan.declined = true;
    report.source = "own kernel";
  } else {
    unusable_stored_ += stored != nullptr;
    report.candidates = static_cast<int>(candidates.size());
    const bool in_capture = capturing(context_.stream());
    if (choice_ == PlanChoice::first_heuristic || in_capture) {
      result = candidates.front();
      chosen_in_capture_ += in_capture;
      report.source = "first heuristic";
    } else {
      const auto winner = fastest(plan, product, operands, candidates, report);
      plan.declined = !winner.has_value();
      if (plan.declined) report.source = "own kernel";
      result = winner.value_or(HeuristicResult{});
      if (stored == nullptr && report.source == "timed") {
        const auto kept = file_.keep(report.product, stored_form(result.algorithm));
        HeuristicResult other{};
        if (kept != stored_form(result.algorithm) && usable(plan, kept, other)) result = other;
      }
    }
  }
  plan.algorithm = result.algorithm;
  if (!plan.declined) report.algorithm = algorithm_name(result.algorithm);
  report.choice_milliseconds = milliseconds_now() - start;
  reports_.push_back(std::move(report));
}

bool CublasltMatmul::usable(const Plan& plan, const MatmulPlanFile::Algorithm& stored, HeuristicResult& result) const {
  const Algorithm algorithm = library_form(stored);
  const Status status =
      library_->functions().cublasLtMatmulAlgoCheck(handle_, plan.description, plan.a, plan.b, plan.out, plan.out, &algorithm, &result);
  result.algorithm = algorithm;
  return status == status_success && result.workspace_bytes <= workspace_bytes;
}

std::vector<HeuristicResult> CublasltMatmul::propose(const Plan& plan, const Product& product) const {
  const Functions& call = library_->functions();
  Preference preference = nullptr;
  library_->check(call.cublasLtMatmulPreferenceCreate(&preference), "cublasLtMatmulPreferenceCreate");
  const std::unique_ptr<void, Status (*)(Preference)> owner(preference, call.cublasLtMatmulPreferenceDestroy);
  const auto set = [&](int attribute, auto value) {
    library_->check(call.cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value),
                    "cublasLtMatmulPreferenceSetAttribute");
  };
  set(preference_max_workspace_bytes, static_cast<std::uint64_t>(workspace_bytes));
  set(preference_reduction_scheme_mask, reduction_none | reduction_compute_type);
  set(preference_min_alignment_a_bytes, product.alignment_a);
  set(preference_min_alignment_b_bytes, product.alignment_b);
  set(preference_min_alignment_c_bytes, product.alignment_out);
  set(preference_min_alignment_d_bytes, product.alignment_out);
  std::vector<HeuristicResult> results(most_candidates);
  int found = 0;
  const Status status = call.cublasLtMatmulAlgoGetHeuristic(handle_, plan.description, plan.a, plan.b, plan.out, plan.out, preference,
                                                            most_candidates, results.data(), &found);
  results.resize(status == status_success ? static_cast<std::size_t>(found) : 0);
  // The mask is a wish of ours to the library; determinism is not left to it.
  std::erase_if(results, [&](const HeuristicResult& result) {
    std::uint32_t scheme = reduction_in_place;
    std::size_t written = 0;
    const Status asked =
        call.cublasLtMatmulAlgoConfigGetAttribute(&result.algorithm, algorithm_reduction_scheme, &scheme, sizeof scheme, &written);
    return result.state != status_success || result.workspace_bytes > workspace_bytes || asked != status_success ||
           (scheme & ~reduction_compute_type) != 0;
  });
  return results;
}

// Times by rounds over all candidates in turn, so that a drift of the clocks meets all alike; the median of the rounds counts.
std::optional<HeuristicResult> CublasltMatmul::fastest(const Plan& plan, const Product& product, const Operands& operands,
                                                       const std::vector<HeuristicResult>& candidates, PlanReport& report) {
  report.source = "timed";
  const cudaStream_t stream = context_.stream();
  const Scratch a(product.leading_a * (product.transpose_a ? product.rows : product.inner), product.type);
  const Scratch b(product.leading_b * (product.transpose_b ? product.inner : product.columns), product.type);
  const Scratch sum(product.accumulate ? product.leading_out * product.columns : 1, product.out_type);
  if (product.accumulate && sum.data() == nullptr) {
    report.source = "first heuristic";  // no memory to add into
    return candidates.front();
  }
  // With no memory left for random operands the caller's own serve; its output is about to be overwritten anyway.
  Operands trial = operands;
  if (a.data() != nullptr && b.data() != nullptr) {
    a.fill(stream, 1);
    b.fill(stream, 2);
    trial.a = a.data(), trial.b = b.data();
  }
  if (product.accumulate) {
    sum.fill(stream, 3);
    trial.out = sum.data();
  }

  const Event start, stop;
  std::vector<std::vector<float>> times(candidates.size());
  const double deadline = milliseconds_now() + choice_milliseconds;
  const auto run = [&](std::size_t candidate, bool timed) {
    CHECK_CUDA(cudaEventRecord(start.get(), stream));
    if (launch(plan, product, trial, candidates[candidate].algorithm) != status_success) return false;
    CHECK_CUDA(cudaEventRecord(stop.get(), stream));
    CHECK_CUDA(cudaEventSynchronize(stop.get()));
    float milliseconds = 0;
    CHECK_CUDA(cudaEventElapsedTime(&milliseconds, start.get(), stop.get()));
    if (timed) times[candidate].push_back(milliseconds);
    return true;
  };
  float best_once = std::numeric_limits<float>::infinity();
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    if (i > 2 && milliseconds_now() > deadline) break;
    if (run(i, false) && run(i, true)) best_once = std::min(best_once, times[i].front());
  }
  const auto in_race = [&](std::size_t i) { return !times[i].empty() && times[i].front() <= best_once * race_margin; };
  for (int round = 0; round < timed_rounds && milliseconds_now() < deadline; ++round)
    for (std::size_t i = 0; i < candidates.size(); ++i)
      if (in_race(i)) run(i, true);

  double best = std::numeric_limits<double>::infinity();
  for (std::size_t i = 0; i < candidates.size(); ++i)
    if (in_race(i)) best = std::min(best, median(times[i]));
  if (best == std::numeric_limits<double>::infinity()) return std::nullopt;
  std::size_t winner = 0;
  while (winner + 1 < candidates.size() && !(in_race(winner) && median(times[winner]) <= best * tie)) ++winner;
  report.first_microseconds = times.front().empty() ? 0 : 1000 * median(times.front());
  report.best_microseconds = 1000 * median(times[winner]);
  return candidates[winner];
}

std::string CublasltMatmul::algorithm_name(const Algorithm& algorithm) const {
  const auto get = [&](int attribute) {
    std::int32_t value = 0;
    std::size_t written = 0;
    const Status status =
        library_->functions().cublasLtMatmulAlgoConfigGetAttribute(&algorithm, attribute, &value, sizeof value, &written);
    return status == status_success ? std::to_string(value) : std::string("?");
  };
  return "id " + get(algorithm_id) + " tile " + get(algorithm_tile) + " stages " + get(algorithm_stages) + " split " + get(algorithm_split_k) +
         " scheme " + get(algorithm_reduction_scheme);
}

std::unique_ptr<MatmulEngine> make_matmul_engine(CudaContext& context) {
  std::string reason;
  if (auto library = Library::find(reason)) return std::make_unique<CublasltMatmul>(context, std::move(library), PlanChoice::timed);
  return make_own_matmul_engine(context, reason);
}

}  // namespace tinyllama::cuda
