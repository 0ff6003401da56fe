// What trains a model on one rank, put together: device, ranks, parameters, model and optimizer.
#pragma once
#include <memory>

#include "native/device/open_device.h"
#include "native/distributed/communicator.h"
#include "native/distributed/parameter_store.h"
#include "native/model/llama.h"
#include "native/optimizer/adamw.h"

namespace tinyllama {

struct EngineOptions {
  DeviceOptions device;
  Recompute recompute = Recompute::none;
  Sharding sharding;
  DataType state_type = DataType::f32;  // of weights and moments between the steps; gradients are fp32
};

struct TrainingEngine {
  // `world` of another kind than single is opened over the same device.
  TrainingEngine(std::unique_ptr<Device> device, std::unique_ptr<Communicator> world, const LlamaConfig& config, const EngineOptions& options)
      : device(std::move(device)),
        world(std::move(world)),
        store(*this->device, config, *this->world, options.sharding, options.state_type),
        llama(*this->device, config, store, options.recompute),
        optimizer(*this->device, store) {}
  TrainingEngine(const TrainingEngine&) = delete;
  TrainingEngine& operator=(const TrainingEngine&) = delete;

  std::shared_ptr<Device> device;  // what reads a snapshot holds it too
  std::unique_ptr<Communicator> world;
  ParameterStore store;
  Llama llama;
  AdamW optimizer;
};

}  // namespace tinyllama
