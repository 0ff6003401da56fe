// Products by cuBLASLt, each with the algorithm that was fastest on this GPU.
//
// Plans. The first product of a shape asks cuBLASLt for up to 16 algorithms and times them on random data of that shape (never on the
// caller's output where that is added to); every later one uses the winner. While a graph is captured nothing can be timed: the first
// algorithm proposed is taken then, and describe() says so.
//
// Rounding. An output is rounded once, after all sums. Products that are added into a bf16 output are therefore our own kernels' (see
// rounds_twice in the source): training adds into fp32 outputs only.
//
// Determinism. One plan gives the same bits every time on the same GPU model and library version: no algorithm is allowed that splits K and
// adds the parts in the output itself (CUBLASLT_REDUCTION_SCHEME_INPLACE, where the order of additions is the order of arrival) or rounds the parts to
// the output's type; those that keep fp32 parts in the workspace and add them in a second pass are allowed. The workspace belongs to the
// engine and to its one stream, so no other product can disturb it, and its size never changes what is chosen. Which plan is chosen does depend on
// timing; the plan file (matmul_plan_file.h) makes one choice hold for all later processes. Where it cannot be written, describe() says so,
// and a resumed run may differ from the interrupted one in last bits.
#pragma once
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "native/device/cuda/cublaslt_library.h"
#include "native/device/cuda/matmul.h"
#include "native/device/cuda/matmul_plan_file.h"

namespace tinyllama::cuda {

enum class PlanChoice : std::uint8_t { timed, first_heuristic };

// How one product got its plan.
struct PlanReport {
  std::string product;  // "NT bf16 32768x2560x2048 -> bf16"
  std::string source;   // "timed", "plan file", "first heuristic", "own kernel"
  std::string algorithm;
  int candidates = 0;
  double first_microseconds = 0, best_microseconds = 0;  // of the first proposed and of the chosen, where timed
  double choice_milliseconds = 0;                        // what the choice cost
};

class CublasltMatmul : public MatmulEngine {
 public:
  CublasltMatmul(CudaContext& context, std::unique_ptr<cublaslt::Library> library, PlanChoice choice);
  ~CublasltMatmul() override;

  void matmul(const Tensor& out, const Tensor& a, Transpose transpose_a, const Tensor& b, Transpose transpose_b, bool accumulate) override;
  std::string describe() const override;
  std::size_t memory() const override;
  const std::vector<PlanReport>& reports() const { return reports_; }

 private:
  // What the choice of an algorithm may depend on, in cuBLASLt's column-major terms: D(rows, columns) = op(A)·op(B) + C.
  struct Product {
    int type, out_type;
    bool transpose_a, transpose_b, accumulate;
    std::int64_t rows, columns, inner, leading_a, leading_b, leading_out;
    std::uint32_t alignment_a, alignment_b, alignment_out;
    auto operator<=>(const Product&) const = default;
    std::string name() const;
  };
  struct Operands {
    void* out;
    const void* a;
    const void* b;
  };
  struct Plan;

  Plan& plan(const Product& product, const Operands& operands);
  void choose(Plan& plan, const Product& product, const Operands& operands);
  std::vector<cublaslt::HeuristicResult> propose(const Plan& plan, const Product& product) const;
  // Null where the library refuses every candidate.
  std::optional<cublaslt::HeuristicResult> fastest(const Plan& plan, const Product& product, const Operands& operands,
                                                   const std::vector<cublaslt::HeuristicResult>& candidates, PlanReport& report);
  bool usable(const Plan& plan, const MatmulPlanFile::Algorithm& stored, cublaslt::HeuristicResult& result) const;
  cublaslt::Status launch(const Plan& plan, const Product& product, const Operands& operands, const cublaslt::Algorithm& algorithm) const;
  std::string algorithm_name(const cublaslt::Algorithm& algorithm) const;

  CudaContext& context_;
  std::unique_ptr<cublaslt::Library> library_;
  PlanChoice choice_;
  MatmulPlanFile file_;
  std::unique_ptr<MatmulEngine> own_;  // for what cuBLASLt declines
  cublaslt::Handle handle_ = nullptr;
  void* workspace_ = nullptr;
  std::map<Product, std::unique_ptr<Plan>> plans_;
  std::vector<PlanReport> reports_;
  int chosen_in_capture_ = 0;
  int unusable_stored_ = 0;
};

}  // namespace tinyllama::cuda
