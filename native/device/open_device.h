// Which device computes: the CPU, or a GPU where its library, a driver and a card are there.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "native/core/tensor.h"
#include "native/device/device.h"

namespace tinyllama {

enum class DeviceKind : std::uint8_t { cpu, cuda };

struct DeviceOptions {
  DeviceKind kind = DeviceKind::cpu;
  int threads = 1;                           // of the CPU
  int ordinal = 0;                           // which GPU
  DataType compute_type = DataType::f32;     // the CPU knows f32 alone
  bool graphs = true;                        // of the GPU
};

struct Gpu {
  std::string name;
  std::size_t memory;  // bytes
  int major, minor;    // compute capability
};

struct GpuSurvey {
  std::vector<Gpu> gpus;  // that the engine can use
  std::string obstacle;   // why there are none, and what to do about it; empty when there are some
};

// Looks once in a process. TINYLLAMA_CUDA_LIBRARY names the library's file; by default it lies beside the file that this code is in.
const GpuSurvey& survey_gpus();

// What the CUDA engine offers beside devices. Throws Error where it cannot be loaded.
struct CudaLibrary;
const CudaLibrary& cuda_library();

// Throws Error where the device cannot be used.
std::unique_ptr<Device> open_device(const DeviceOptions& options);

}  // namespace tinyllama
