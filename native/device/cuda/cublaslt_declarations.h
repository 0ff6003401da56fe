// The part of cuBLASLt that the engine calls, declared here so that a machine without the library's headers compiles it: the library is
// found at run time. Names and numbers are those of cublasLt.h, cublas_api.h and library_types.h of versions 12 and 13;
// cublaslt_declarations_check.cpp compares them with the real headers where those are installed.
#pragma once
#include <cstddef>
#include <cstdint>

struct CUstream_st;  // what a cudaStream_t points to

namespace tinyllama::cublaslt {

// cublas_api.h: cublasStatus_t
inline constexpr int status_success = 0;
// cublas_api.h: cublasOperation_t
inline constexpr std::int32_t operation_none = 0;
inline constexpr std::int32_t operation_transpose = 1;
// cublas_api.h: cublasComputeType_t. CUBLAS_COMPUTE_32F: fp32 arithmetic, no TF32; bf16 operands go to the tensor cores with fp32 sums.
inline constexpr int compute_32f = 68;
// library_types.h: cudaDataType
inline constexpr int data_32f = 0;
inline constexpr int data_16bf = 14;

// cublasLt.h: cublasLtMatmulDescAttributes_t, both int32_t
inline constexpr int description_transpose_a = 3;
inline constexpr int description_transpose_b = 4;
// cublasLt.h: cublasLtMatmulPreferenceAttributes_t: uint64_t, then uint32_t each
inline constexpr int preference_max_workspace_bytes = 1;
inline constexpr int preference_reduction_scheme_mask = 3;
inline constexpr int preference_min_alignment_a_bytes = 5;
inline constexpr int preference_min_alignment_b_bytes = 6;
inline constexpr int preference_min_alignment_c_bytes = 7;
inline constexpr int preference_min_alignment_d_bytes = 8;
// cublasLt.h: cublasLtReductionScheme_t, a bit mask
inline constexpr std::uint32_t reduction_none = 0;
inline constexpr std::uint32_t reduction_in_place = 1;
inline constexpr std::uint32_t reduction_compute_type = 2;
inline constexpr std::uint32_t reduction_output_type = 4;
// cublasLt.h: cublasLtMatmulAlgoConfigAttributes_t
inline constexpr int algorithm_id = 0;                // int32_t
inline constexpr int algorithm_tile = 1;              // uint32_t
inline constexpr int algorithm_split_k = 2;           // int32_t
inline constexpr int algorithm_reduction_scheme = 3;  // uint32_t
inline constexpr int algorithm_stages = 6;            // uint32_t

using Status = int;
using Handle = void*;
using Description = void*;  // cublasLtMatmulDesc_t
using Layout = void*;       // cublasLtMatrixLayout_t
using Preference = void*;   // cublasLtMatmulPreference_t
using Stream = CUstream_st*;

// cublasLtMatmulAlgo_t: plain data, which the header allows to be stored and used again with the same version of the library.
struct Algorithm {
  std::uint64_t data[8];
};

// cublasLtMatmulHeuristicResult_t
struct HeuristicResult {
  Algorithm algorithm;
  std::size_t workspace_bytes;
  Status state;
  float waves;
  int reserved[4];
};

// The entry points, by their exported names.
struct Functions {
  std::size_t (*cublasLtGetVersion)();
  const char* (*cublasLtGetStatusString)(Status);
  Status (*cublasLtCreate)(Handle*);
  Status (*cublasLtDestroy)(Handle);
  Status (*cublasLtMatmulDescCreate)(Description*, int compute_type, int scale_type);
  Status (*cublasLtMatmulDescDestroy)(Description);
  Status (*cublasLtMatmulDescSetAttribute)(Description, int attribute, const void* value, std::size_t bytes);
  Status (*cublasLtMatrixLayoutCreate)(Layout*, int type, std::uint64_t rows, std::uint64_t columns, std::int64_t leading_dimension);
  Status (*cublasLtMatrixLayoutDestroy)(Layout);
  Status (*cublasLtMatmulPreferenceCreate)(Preference*);
  Status (*cublasLtMatmulPreferenceDestroy)(Preference);
  Status (*cublasLtMatmulPreferenceSetAttribute)(Preference, int attribute, const void* value, std::size_t bytes);
  Status (*cublasLtMatmulAlgoGetHeuristic)(Handle, Description, Layout a, Layout b, Layout c, Layout d, Preference, int requested,
                                           HeuristicResult results[], int* returned);
  Status (*cublasLtMatmulAlgoCheck)(Handle, Description, Layout a, Layout b, Layout c, Layout d, const Algorithm*, HeuristicResult*);
  Status (*cublasLtMatmulAlgoConfigGetAttribute)(const Algorithm*, int attribute, void* value, std::size_t bytes, std::size_t* written);
  Status (*cublasLtMatmul)(Handle, Description, const void* alpha, const void* a, Layout, const void* b, Layout, const void* beta,
                           const void* c, Layout, void* d, Layout, const Algorithm*, void* workspace, std::size_t workspace_bytes, Stream);
};

}  // namespace tinyllama::cublaslt
