#include "native/device/open_device.h"

#include <dlfcn.h>

#include <algorithm>
#include <filesystem>

#include "native/core/engine_library.h"
#include "native/core/error.h"
#include "native/device/cpu/cpu_device.h"
#include "native/device/cuda/library.h"

namespace tinyllama {
namespace {

struct Loaded {
  const CudaLibrary* library = nullptr;
  std::string obstacle;
};

Loaded load() {
  const std::string path = engine_library_path("TINYLLAMA_CUDA_LIBRARY", "libtinyllama_cuda.so");
  if (!std::filesystem::exists(path)) {
    return {nullptr, "the CUDA engine was not built (there is no " + path + "): TINYLLAMA_CUDA=on npm run build:native, where nvcc is in the PATH or CUDA_HOME is set"};
  }
  // Never closed: its kernels and the driver's threads stay until the process ends.
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) return {nullptr, std::string("the CUDA engine cannot be loaded: ") + dlerror()};
  using Entry = const CudaLibrary* (*)();
  const auto entry = reinterpret_cast<Entry>(dlsym(handle, "tinyllama_cuda_library"));
  if (entry == nullptr || entry()->interface_version != cuda_interface_version) {
    return {nullptr, path + " is of another version of tinyllama: build it again (npm run build:native)"};
  }
  return {entry(), ""};
}

const Loaded& loaded() {
  static const Loaded once = load();
  return once;
}

GpuSurvey survey() {
  if (!loaded().library) return {{}, loaded().obstacle};
  constexpr int most = 64;
  std::vector<CudaGpu> found(most);
  char error[1024] = "";
  const int count = loaded().library->gpus(found.data(), most, error, sizeof(error));
  if (count < 0) return {{}, std::string("no GPU can be used: ") + error + "; a driver of CUDA 13 (580 or later) is needed: nvidia-smi shows yours"};
  GpuSurvey result;
  for (int ordinal = 0; ordinal < std::min(count, most); ++ordinal) {
    const CudaGpu& gpu = found[static_cast<std::size_t>(ordinal)];
    result.gpus.push_back({gpu.name, gpu.memory, gpu.major, gpu.minor});
  }
  if (result.gpus.empty()) result.obstacle = "the driver shows no GPU: is CUDA_VISIBLE_DEVICES empty?";
  return result;
}

}  // namespace

const GpuSurvey& survey_gpus() {
  static const GpuSurvey once = survey();
  return once;
}

const CudaLibrary& cuda_library() {
  require(loaded().library != nullptr, loaded().obstacle);
  return *loaded().library;
}

std::unique_ptr<Device> open_device(const DeviceOptions& options) {
  if (options.kind == DeviceKind::cpu) {
    require(options.compute_type == DataType::f32, "the CPU computes in fp32 alone");
    return make_cpu_device(options.threads);
  }
  const GpuSurvey& there = survey_gpus();
  require(!there.gpus.empty(), there.obstacle);
  require(options.ordinal >= 0 && options.ordinal < static_cast<int>(there.gpus.size()),
          "GPU " + std::to_string(options.ordinal) + " was asked for; there are " + std::to_string(there.gpus.size()));
  char error[1024] = "";
  std::unique_ptr<Device> device(
      loaded().library->open({options.ordinal, options.compute_type, options.graphs}, error, sizeof(error)));
  require(device != nullptr, error);
  return device;
}

}  // namespace tinyllama
