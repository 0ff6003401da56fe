#include "native/binding/checkpoint_binding.h"

#include <memory>
#include <string>
#include <utility>

#include "native/binding/arguments.h"
#include "native/binding/model_arguments.h"
#include "native/binding/promise_worker.h"
#include "native/checkpoint/state_writer.h"
#include "native/checkpoint/stored_snapshot.h"
#include "native/core/error.h"
#include "native/device/cpu/cpu_device.h"

namespace tinyllama {
namespace {

StateKind read_kind(const Napi::Value& value) {
  const std::string kind = string_argument(value, "kind");
  if (kind == "weights") return StateKind::weights;
  if (kind == "firstMoment") return StateKind::first_moment;
  require(kind == "secondMoment", "kind must be \"weights\", \"firstMoment\" or \"secondMoment\", got \"" + kind + "\"");
  return StateKind::second_moment;
}

DataType read_type(const Napi::Value& value) {
  const std::string type = string_argument(value, "dtype");
  require(type == "F32" || type == "BF16", "dtype must be \"F32\" or \"BF16\", got \"" + type + "\"");
  return type == "F32" ? DataType::f32 : DataType::bf16;
}

Napi::Array array_argument(const Napi::Value& value, const std::string& name) {
  require(value.IsArray(), name + " must be an array");
  return value.As<Napi::Array>();
}

Napi::Array hex_list(Napi::Env env, const std::vector<Digest>& pieces) {
  Napi::Array list = Napi::Array::New(env, pieces.size());
  for (std::size_t index = 0; index < pieces.size(); ++index) list.Set(static_cast<std::uint32_t>(index), to_hex(pieces[index]));
  return list;
}

Napi::Array written_list(Napi::Env env, const std::vector<WrittenFile>& files) {
  Napi::Array list = Napi::Array::New(env, files.size());
  for (std::size_t index = 0; index < files.size(); ++index) {
    Napi::Object entry = Napi::Object::New(env);
    entry.Set("path", files[index].path);
    entry.Set("bytes", static_cast<double>(files[index].bytes));
    entry.Set("pieces", hex_list(env, files[index].pieces));
    list.Set(static_cast<std::uint32_t>(index), entry);
  }
  return list;
}

// From [{path, kinds}].
std::vector<ShardFile> plan_files(const Napi::Value& value, const ParameterLayout& layout, const std::vector<HeldRange>& held) {
  std::vector<ShardFile> files;
  const Napi::Array list = array_argument(value, "files");
  for (std::uint32_t index = 0; index < list.Length(); ++index) {
    const Napi::Object file = object_argument(list.Get(index), "file");
    const Napi::Array names = array_argument(file.Get("kinds"), "file.kinds");
    std::vector<StateKind> kinds;
    for (std::uint32_t kind = 0; kind < names.Length(); ++kind) kinds.push_back(read_kind(names.Get(kind)));
    files.push_back(plan_shard_file(string_argument(file.Get("path"), "file.path"), layout, held, kinds));
  }
  return files;
}

// What a JavaScript snapshot owns: the memory until it is written, then the writer.
struct Handle {
  Handle(ParameterLayout parameters, SavedState state) : layout(std::move(parameters)), saved(std::move(state)) {}
  const ParameterLayout layout;
  SavedState saved;
  std::unique_ptr<StateWriter> writer;
};

// write(files: [{path, kinds}], threads): the promise settles when the writer is done, which takes no thread of libuv's meanwhile.
Napi::Value write_snapshot(const std::shared_ptr<Handle>& handle, const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  require(handle->saved.memory != nullptr, "this snapshot was written or released");
  std::vector<ShardFile> files = plan_files(info[0], handle->layout, handle->saved.held);
  const int threads = read_thread_count(info[1]);
  auto deferred = std::make_shared<Napi::Promise::Deferred>(env);
  auto settle = [handle, deferred](Napi::Env now, Napi::Function) {
    try {
      deferred->Resolve(written_list(now, handle->writer->wait()));
    } catch (const std::exception& error) {
      deferred->Reject(Napi::Error::New(now, error.what()).Value());
    }
    handle->writer.reset();
  };
  auto done = Napi::ThreadSafeFunction::New(env, Napi::Function(), "tinyllama.writeSnapshot", 0, 1);
  handle->writer = std::make_unique<StateWriter>(handle->saved.device, std::move(handle->saved.memory), std::move(files), threads,
                                                 [done, settle]() mutable {
                                                   done.BlockingCall(settle);
                                                   done.Release();
                                                 });
  return deferred->Promise();
}

}  // namespace

Napi::Object snapshot_object(Napi::Env env, ParameterLayout layout, SavedState saved) {
  auto handle = std::make_shared<Handle>(std::move(layout), std::move(saved));
  const MemorySnapshot& memory = *handle->saved.memory;
  Napi::Object object = Napi::Object::New(env);
  object.Set("place", memory.place() == MemorySnapshot::Place::device ? "device" : memory.place() == MemorySnapshot::Place::host ? "host" : "live");
  object.Set("bytes", static_cast<double>(memory.bytes()));
  object.Set("write", Napi::Function::New(env, [handle](const Napi::CallbackInfo& info) { return write_snapshot(handle, info); }, "write"));
  object.Set("release", Napi::Function::New(
                            env,
                            [handle](const Napi::CallbackInfo& info) {
                              handle->saved.memory.reset();
                              if (handle->writer) handle->writer->cancel();
                              return info.Env().Undefined();
                            },
                            "release"));
  return object;
}

int read_thread_count(const Napi::Value& value) {
  const std::int64_t threads = integer_argument(value, "threads");
  require(threads >= 1 && threads <= 1024, "threads must lie between 1 and 1024, got " + std::to_string(threads));
  return static_cast<int>(threads);
}

StoredState read_stored_state(const Napi::Value& files, const Napi::Value& ranges) {
  StoredState stored;
  const Napi::Array file_list = array_argument(files, "files");
  for (std::uint32_t index = 0; index < file_list.Length(); ++index) {
    const Napi::Object file = object_argument(file_list.Get(index), "file");
    StoredFile entry{string_argument(file.Get("path"), "file.path"), integer_argument(file.Get("bytes"), "file.bytes"),
                     integer_argument(file.Get("headerBytes"), "file.headerBytes"), {}};
    const Napi::Array pieces = array_argument(file.Get("pieces"), "file.pieces");
    for (std::uint32_t piece = 0; piece < pieces.Length(); ++piece)
      entry.pieces.push_back(digest_from_hex(string_argument(pieces.Get(piece), "file.pieces")));
    stored.files.push_back(std::move(entry));
  }
  const Napi::Array range_list = array_argument(ranges, "ranges");
  for (std::uint32_t index = 0; index < range_list.Length(); ++index) {
    const Napi::Object range = object_argument(range_list.Get(index), "range");
    stored.ranges.push_back({static_cast<std::size_t>(integer_argument(range.Get("file"), "range.file")),
                             integer_argument(range.Get("fileOffset"), "range.fileOffset"),
                             {read_kind(range.Get("kind")), integer_argument(range.Get("offset"), "range.offset"),
                              integer_argument(range.Get("count"), "range.count")},
                             read_type(range.Get("dtype"))});
  }
  return stored;
}

// hashPieces(path, threads): Promise<{bytes, pieces}>
Napi::Value hash_pieces(const Napi::CallbackInfo& info) {
  return run_async<FilePieces>(
      info.Env(), "tinyllama.hashPieces",
      [path = string_argument(info[0], "path"), threads = read_thread_count(info[1])] { return hash_file(path, threads); },
      [](Napi::Env env, FilePieces& found) {
        Napi::Object answer = Napi::Object::New(env);
        answer.Set("bytes", static_cast<double>(found.bytes));
        answer.Set("pieces", hex_list(env, found.pieces));
        return answer;
      });
}

// gatherState(config, files, ranges, dtype, targets, threads): Promise<WrittenFile[]>
Napi::Value gather_state(const Napi::CallbackInfo& info) {
  const ParameterLayout layout = parameter_layout(read_config(info[0]));
  const StoredState stored = read_stored_state(info[1], info[2]);
  const DataType type = read_type(info[3]);
  std::vector<HeldRange> held;
  std::vector<WantedRange> wanted;
  for (const StateKind kind : {StateKind::weights, StateKind::first_moment, StateKind::second_moment}) {
    held.push_back({{kind, 0, layout.count}, type, nullptr});
    wanted.push_back({held.back().elements, type});
  }
  return run_async<std::vector<WrittenFile>>(
      info.Env(), "tinyllama.gatherState",
      [stored, wanted, targets = plan_files(info[4], layout, held), threads = read_thread_count(info[5])] {
        auto snapshot = std::make_shared<StoredSnapshot>(stored.files, stored.ranges, wanted);
        StateWriter writer(make_cpu_device(1), std::move(snapshot), targets, threads);
        return writer.wait();
      },
      [](Napi::Env env, std::vector<WrittenFile>& files) { return written_list(env, files); });
}

void register_checkpoint(Napi::Env env, Napi::Object exports) {
  exports.Set("gatherState", Napi::Function::New(env, gather_state));
  exports.Set("hashPieces", Napi::Function::New(env, hash_pieces));
  exports.Set("pieceBytes", Napi::Number::New(env, static_cast<double>(piece_bytes)));
}

}  // namespace tinyllama
