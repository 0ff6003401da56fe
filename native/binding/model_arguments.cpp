#include "native/binding/model_arguments.h"

#include <initializer_list>
#include <string>

#include "native/binding/arguments.h"
#include "native/core/error.h"

namespace tinyllama {

namespace {

int read_threads(const Napi::Value& value) {
  const std::int64_t threads = integer_argument(object_argument(value, "options").Get("threads"), "options.threads");
  require(threads >= 1 && threads <= 1024, "options.threads must lie between 1 and 1024, got " + std::to_string(threads));
  return static_cast<int>(threads);
}

// One of the names, by its place among them; the first when nothing is given.
std::size_t read_choice(const Napi::Value& value, const std::string& name, std::initializer_list<const char*> choices) {
  if (value.IsUndefined()) return 0;
  const std::string given = string_argument(value, name);
  std::string all;
  std::size_t index = 0;
  for (const char* choice : choices) {
    if (given == choice) return index;
    all += std::string(index == 0 ? "\"" : ", \"") + choice + "\"";
    ++index;
  }
  throw Error(name + " must be one of " + all + ", got \"" + given + "\"");
}

std::vector<std::int32_t> copy_ids(const Napi::Value& value, const std::string& name) {
  const Napi::Int32Array ids = int32_argument(value, name);
  return {ids.Data(), ids.Data() + ids.ElementLength()};
}

}  // namespace

LlamaConfig read_config(const Napi::Value& value) {
  const Napi::Object object = object_argument(value, "config");
  auto integer = [&](const char* name) { return integer_argument(object.Get(name), std::string("config.") + name); };
  LlamaConfig config;
  config.vocab_size = integer("vocab_size");
  config.hidden_size = integer("hidden_size");
  config.intermediate_size = integer("intermediate_size");
  config.num_hidden_layers = integer("num_hidden_layers");
  config.num_attention_heads = integer("num_attention_heads");
  config.num_key_value_heads = integer("num_key_value_heads");
  config.head_dim = integer("head_dim");
  config.rms_norm_eps = number_argument(object.Get("rms_norm_eps"), "config.rms_norm_eps");
  config.rope_theta = number_argument(object.Get("rope_theta"), "config.rope_theta");
  config.tie_word_embeddings = boolean_argument(object.Get("tie_word_embeddings"), "config.tie_word_embeddings");
  return config;
}

EngineOptions read_options(const Napi::Value& value) {
  const Napi::Object object = object_argument(value, "options");
  EngineOptions options;
  options.device.threads = read_threads(value);
  options.device.kind = read_choice(object.Get("device"), "options.device", {"cpu", "cuda"}) == 0 ? DeviceKind::cpu : DeviceKind::cuda;
  if (const Napi::Value gpu = object.Get("gpu"); !gpu.IsUndefined())
    options.device.ordinal = static_cast<int>(integer_argument(gpu, "options.gpu"));
  options.device.compute_type = read_choice(object.Get("precision"), "options.precision", {"fp32", "bf16"}) == 0 ? DataType::f32 : DataType::bf16;
  options.device.graphs = read_choice(object.Get("graphs"), "options.graphs", {"on", "off"}) == 0;
  options.state_type = read_choice(object.Get("state"), "options.state", {"fp32", "bf16"}) == 0 ? DataType::f32 : DataType::bf16;
  options.recompute =
      static_cast<Recompute>(read_choice(object.Get("recompute"), "options.recompute", {"none", "pointwise", "gate_up", "full"}));
  options.sharding.strategy =
      static_cast<Strategy>(read_choice(object.Get("strategy"), "options.strategy", {"none", "zero2", "fsdp", "hsdp"}));
  if (const Napi::Value size = object.Get("shardSize"); !size.IsUndefined())
    options.sharding.shard_size = static_cast<int>(integer_argument(size, "options.shardSize"));
  options.sharding.fixed_order = read_choice(object.Get("gradientSum"), "options.gradientSum", {"fast", "fixed-order"}) == 1;
  if (const Napi::Value share = object.Get("shareGradients"); !share.IsUndefined())
    options.sharding.share_gradients = boolean_argument(share, "options.shareGradients");
  return options;
}

CommunicatorOptions read_world(const Napi::Value& options) {
  const Napi::Value world = object_argument(options, "options").Get("world");
  if (world.IsUndefined()) return {};
  const Napi::Object object = object_argument(world, "options.world");
  CommunicatorOptions result;
  constexpr CommunicatorKind kinds[] = {CommunicatorKind::single, CommunicatorKind::nccl, CommunicatorKind::mpi, CommunicatorKind::host_staged,
                                        CommunicatorKind::fake};
  result.kind =
      kinds[read_choice(object.Get("communicator"), "options.world.communicator", {"single", "nccl", "mpi", "host-staged", "fake"})];
  result.rank = static_cast<int>(integer_argument(object.Get("rank"), "options.world.rank"));
  result.size = static_cast<int>(integer_argument(object.Get("size"), "options.world.size"));
  const auto text = [&object](const char* name) {
    const Napi::Value given = object.Get(name);
    return given.IsUndefined() ? std::string() : string_argument(given, std::string("options.world.") + name);
  };
  result.master_addr = text("masterAddress");
  result.nonce = text("nonce");
  result.log_folder = text("logFolder");
  if (const Napi::Value port = object.Get("masterPort"); !port.IsUndefined())
    result.master_port = static_cast<int>(integer_argument(port, "options.world.masterPort"));
  if (const Napi::Value seconds = object.Get("collectiveSeconds"); !seconds.IsUndefined())
    result.collective_timeout = number_argument(seconds, "options.world.collectiveSeconds");
  if (const Napi::Value agreement = object.Get("agreement"); agreement.IsArray()) {
    const Napi::Array fields = agreement.As<Napi::Array>();
    for (std::uint32_t index = 0; index < fields.Length(); ++index) {
      const Napi::Object field = object_argument(fields.Get(index), "options.world.agreement");
      result.agreement.push_back({string_argument(field.Get(0u), "a field's name"), string_argument(field.Get(1u), "a field's value")});
    }
  }
  return result;
}

MicroBatchRound read_round(const Napi::Value& value) {
  if (value.IsUndefined()) return {};
  const Napi::Object object = object_argument(value, "round");
  return {boolean_argument(object.Get("last"), "round.last"), static_cast<int>(integer_argument(object.Get("contributors"), "round.contributors"))};
}

AdamWOptions read_step(const Napi::Value& value) {
  const Napi::Object object = object_argument(value, "options");
  auto number = [&](const char* name) { return number_argument(object.Get(name), std::string("options.") + name); };
  AdamWOptions options;
  options.step = integer_argument(object.Get("step"), "options.step");
  options.learning_rate = number("learningRate");
  options.beta1 = number("beta1");
  options.beta2 = number("beta2");
  options.epsilon = number("epsilon");
  options.weight_decay = number("weightDecay");
  options.clip = number("clip");
  const std::string decay = string_argument(object.Get("decay"), "options.decay");
  require(decay == "all" || decay == "matrices", "options.decay must be \"all\" or \"matrices\", got \"" + decay + "\"");
  options.decay = decay == "all" ? DecayPolicy::all : DecayPolicy::matrices;
  if (const Napi::Value seed = object.Get("seed"); !seed.IsUndefined())
    options.seed = static_cast<std::uint64_t>(integer_argument(seed, "options.seed"));
  return options;
}

OwnedBatch read_batch(const Napi::Value& value, bool with_targets) {
  const Napi::Object object = object_argument(value, "batch");
  OwnedBatch batch;
  batch.tokens = copy_ids(object.Get("tokens"), "batch.tokens");
  if (with_targets) batch.targets = copy_ids(object.Get("targets"), "batch.targets");
  if (const Napi::Value first_keys = object.Get("firstKeys"); !first_keys.IsUndefined())
    batch.first_keys = copy_ids(first_keys, "batch.firstKeys");
  batch.batch = integer_argument(object.Get("batch"), "batch.batch");
  batch.length = integer_argument(object.Get("length"), "batch.length");
  return batch;
}

}  // namespace tinyllama
