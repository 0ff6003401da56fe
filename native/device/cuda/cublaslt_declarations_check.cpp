// Our declarations of cuBLASLt against the real header, where it is installed: a difference stops the build. Elsewhere this file is empty.
#if __has_include(<cublasLt.h>) && __has_include(<cuda_runtime_api.h>)
#include <cublasLt.h>

#include <cstddef>

#include "native/device/cuda/cublaslt_declarations.h"
#include "native/device/cuda/same_signature.h"

namespace tinyllama::cublaslt {

static_assert(status_success == CUBLAS_STATUS_SUCCESS);
static_assert(operation_none == CUBLAS_OP_N && operation_transpose == CUBLAS_OP_T);
static_assert(compute_32f == CUBLAS_COMPUTE_32F);
static_assert(data_32f == CUDA_R_32F && data_16bf == CUDA_R_16BF);
static_assert(description_transpose_a == CUBLASLT_MATMUL_DESC_TRANSA && description_transpose_b == CUBLASLT_MATMUL_DESC_TRANSB);
static_assert(preference_max_workspace_bytes == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES);
static_assert(preference_reduction_scheme_mask == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK);
static_assert(preference_min_alignment_a_bytes == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES);
static_assert(preference_min_alignment_b_bytes == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES);
static_assert(preference_min_alignment_c_bytes == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES);
static_assert(preference_min_alignment_d_bytes == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES);
static_assert(reduction_none == CUBLASLT_REDUCTION_SCHEME_NONE && reduction_in_place == CUBLASLT_REDUCTION_SCHEME_INPLACE);
static_assert(reduction_compute_type == CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE);
static_assert(reduction_output_type == CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE);
static_assert(algorithm_id == CUBLASLT_ALGO_CONFIG_ID && algorithm_tile == CUBLASLT_ALGO_CONFIG_TILE_ID);
static_assert(algorithm_split_k == CUBLASLT_ALGO_CONFIG_SPLITK_NUM);
static_assert(algorithm_reduction_scheme == CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME);
static_assert(algorithm_stages == CUBLASLT_ALGO_CONFIG_STAGES_ID);

static_assert(sizeof(Algorithm) == sizeof(cublasLtMatmulAlgo_t) && alignof(Algorithm) == alignof(cublasLtMatmulAlgo_t));
static_assert(sizeof(HeuristicResult) == sizeof(cublasLtMatmulHeuristicResult_t));
static_assert(offsetof(HeuristicResult, workspace_bytes) == offsetof(cublasLtMatmulHeuristicResult_t, workspaceSize));
static_assert(offsetof(HeuristicResult, state) == offsetof(cublasLtMatmulHeuristicResult_t, state));
static_assert(offsetof(HeuristicResult, waves) == offsetof(cublasLtMatmulHeuristicResult_t, wavesCount));

#define AGREES(function) static_assert(same_signature<decltype(Functions::function), decltype(&::function)>, #function)
AGREES(cublasLtGetVersion);
AGREES(cublasLtGetStatusString);
AGREES(cublasLtCreate);
AGREES(cublasLtDestroy);
AGREES(cublasLtMatmulDescCreate);
AGREES(cublasLtMatmulDescDestroy);
AGREES(cublasLtMatmulDescSetAttribute);
AGREES(cublasLtMatrixLayoutCreate);
AGREES(cublasLtMatrixLayoutDestroy);
AGREES(cublasLtMatmulPreferenceCreate);
AGREES(cublasLtMatmulPreferenceDestroy);
AGREES(cublasLtMatmulPreferenceSetAttribute);
AGREES(cublasLtMatmulAlgoGetHeuristic);
AGREES(cublasLtMatmulAlgoCheck);
AGREES(cublasLtMatmulAlgoConfigGetAttribute);
AGREES(cublasLtMatmul);
#undef AGREES

}  // namespace tinyllama::cublaslt
#endif
