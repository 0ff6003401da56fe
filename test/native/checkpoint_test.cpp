// Checkpoints' own promises: digests against FIPS 180-4 and between implementations, any number of ranks reads what any other wrote, a snapshot does
// not change with what it was taken of, damage is named.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "native/checkpoint/sha256.h"
#include "native/checkpoint/state_reader.h"
#include "native/checkpoint/state_writer.h"
#include "native/core/error.h"
#include "native/device/cpu/cpu_device.h"
#include "native/model/config.h"
#include "test/native/checks.h"

using namespace tinyllama;
using check::expect;
using check::expect_throws;

namespace {

std::string hex_of(const std::string& text) { return to_hex(sha256(text.data(), text.size())); }

void digests() {
  expect(hex_of("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "sha256 of nothing");
  expect(hex_of("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", "sha256 of abc");
  expect(hex_of("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq") == "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1",
        "sha256 of two blocks");
  expect(hex_of(std::string(1000000, 'a')) == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0", "sha256 of a million a");
  const Digest some = sha256("abc", 3);
  expect(digest_from_hex(to_hex(some)) == some, "hexadecimal digits and back");
  expect_throws([] { digest_from_hex("abc"); }, "is no sha256");
  expect_throws([] { digest_from_hex(std::string(64, 'g')); }, "is no sha256");
#if defined(__x86_64__)
  if (std::string(sha256_implementation()) != "sha-ni") return;
  std::mt19937 random(1);
  std::vector<std::uint8_t> bytes(64 * 37 + 1);
  for (auto& byte : bytes) byte = static_cast<std::uint8_t>(random());
  for (std::size_t blocks = 0; blocks <= 37; ++blocks) {
    Sha256State a{1, 2, 3, 4, 5, 6, 7, 8}, b = a;
    sha256_blocks_portable(a, bytes.data() + 1, blocks);
    sha256_blocks_shani(b, bytes.data() + 1, blocks);
    expect(a == b, "both implementations agree on " + std::to_string(blocks) + " blocks");
  }
#endif
}

// A folder that goes with the test.
struct Folder {
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "checkpoint-test-XXXXXX").string();
    require(mkdtemp(name.data()) != nullptr, "no temporary folder");
    path = name;
  }
  ~Folder() { std::filesystem::remove_all(path); }
  std::string path;
};

constexpr StateKind kinds[] = {StateKind::weights, StateKind::first_moment, StateKind::second_moment};

// The whole state as bytes, by kind.
struct State {
  DataType type;
  std::vector<std::vector<std::uint8_t>> bytes;
};

State random_state(std::int64_t count, DataType type, std::uint32_t seed) {
  std::mt19937 random(seed);
  State state{type, {}};
  for (std::size_t kind = 0; kind < 3; ++kind) {
    std::vector<std::uint8_t> bytes(static_cast<std::size_t>(count * bytes_of(type)));
    for (std::size_t at = 0; at + 4 <= bytes.size(); at += 4) {
      const auto word = static_cast<std::uint32_t>(random());
      std::memcpy(bytes.data() + at, &word, 4);
    }
    state.bytes.push_back(std::move(bytes));
  }
  return state;
}

// Cuts [0, count) at random into runs and deals them out: some ranks may get nothing.
std::vector<std::vector<ElementRange>> deal(std::int64_t count, int ranks, std::mt19937& random) {
  std::vector<std::vector<ElementRange>> shares(static_cast<std::size_t>(ranks));
  for (const StateKind kind : kinds) {
    for (std::int64_t at = 0; at < count;) {
      const std::int64_t length = std::min<std::int64_t>(count - at, 1 + static_cast<std::int64_t>(random() % static_cast<std::uint32_t>(count / 2 + 1)));
      shares[random() % static_cast<std::uint32_t>(ranks)].push_back({kind, at, length});
      at += length;
    }
  }
  // Held in any order.
  for (auto& share : shares) std::shuffle(share.begin(), share.end(), random);
  return shares;
}

struct Saved {
  std::vector<StoredFile> files;
  std::vector<StoredRange> ranges;
};

// Every rank's share, from memory that is changed while it is written.
Saved save(const std::string& folder, const ParameterLayout& layout, const State& state, const std::vector<std::vector<ElementRange>>& shares) {
  const std::shared_ptr<Device> device = make_cpu_device(2);
  Saved saved;
  for (std::size_t rank = 0; rank < shares.size(); ++rank) {
    State live = state;
    std::vector<HeldRange> held;
    std::vector<MemoryRange> memory;
    for (const ElementRange& range : shares[rank]) {
      void* data = live.bytes[static_cast<std::size_t>(range.kind)].data() + range.offset * bytes_of(state.type);
      held.push_back({range, state.type, data});
      memory.push_back({data, static_cast<std::size_t>(held.back().bytes())});
    }
    std::shared_ptr<MemorySnapshot> snapshot = device->snapshot(memory);
    const std::string stem = folder + "/" + std::to_string(rank);
    const std::vector<ShardFile> files{plan_shard_file(stem + ".weights", layout, held, {StateKind::weights}),
                                       plan_shard_file(stem + ".moments", layout, held, {StateKind::first_moment, StateKind::second_moment})};
    const bool is_copy = snapshot->place() == MemorySnapshot::Place::host;
    StateWriter writer(device, std::move(snapshot), files, 2);
    if (is_copy)
      for (auto& bytes : live.bytes) std::fill(bytes.begin(), bytes.end(), std::uint8_t{0xee});
    const std::vector<WrittenFile>& written = writer.wait();
    for (std::size_t i = 0; i < files.size(); ++i) {
      expect(files[i].header.size() % 4096 == 0, "data begin at a multiple of 4096 bytes");
      for (const FileSection& section : files[i].sections)
        saved.ranges.push_back({saved.files.size(), section.file_offset, section.elements, section.type});
      saved.files.push_back({written[i].path, written[i].bytes, static_cast<std::int64_t>(files[i].header.size()), written[i].pieces});
    }
  }
  return saved;
}

// What a rank that wants these ranges gets.
State load(const Saved& saved, const State& like, const std::vector<ElementRange>& wanted, int threads) {
  const std::unique_ptr<Device> device = make_cpu_device(1);
  State state = like;
  for (auto& bytes : state.bytes) std::fill(bytes.begin(), bytes.end(), std::uint8_t{0});
  std::vector<WantedRange> typed;
  for (const ElementRange& range : wanted) typed.push_back({range, like.type});
  read_state(*device, saved.files, saved.ranges, typed, threads, [&](const ElementRange& elements, const void* values) {
    const std::int64_t width = bytes_of(like.type);
    std::memcpy(state.bytes[static_cast<std::size_t>(elements.kind)].data() + elements.offset * width, values, static_cast<std::size_t>(elements.count * width));
  });
  return state;
}

bool same(const State& a, const State& b, const ElementRange& range) {
  const auto kind = static_cast<std::size_t>(range.kind);
  const std::int64_t width = bytes_of(a.type);
  return std::memcmp(a.bytes[kind].data() + range.offset * width, b.bytes[kind].data() + range.offset * width,
                     static_cast<std::size_t>(range.count * width)) == 0;
}

ParameterLayout layout_of(std::int64_t width, std::int64_t layers, std::int64_t vocabulary) {
  LlamaConfig config;
  config.vocab_size = vocabulary;
  config.hidden_size = width;
  config.intermediate_size = 2 * width + 2;
  config.num_hidden_layers = layers;
  config.num_attention_heads = 2;
  config.num_key_value_heads = 1;
  config.head_dim = 4;
  return parameter_layout(config);
}

void any_ranks_to_any_others() {
  std::mt19937 random(7);
  for (int trial = 0; trial < 30; ++trial) {
    const ParameterLayout layout = layout_of(3 + random() % 9, 1 + random() % 3, 5 + random() % 20);
    const DataType type = trial % 3 == 2 ? DataType::bf16 : DataType::f32;
    const State state = random_state(layout.count, type, static_cast<std::uint32_t>(trial));
    const int writers = 1 + trial % 7, readers = 1 + static_cast<int>(random() % 7);
    const Folder folder;
    const Saved saved = save(folder.path, layout, state, deal(layout.count, writers, random));
    for (const std::vector<ElementRange>& wanted : deal(layout.count, readers, random)) {
      const State read = load(saved, state, wanted, 2);
      expect(std::all_of(wanted.begin(), wanted.end(), [&](const ElementRange& range) { return same(state, read, range); }),
            "trial " + std::to_string(trial) + ": " + std::to_string(readers) + " ranks read what " + std::to_string(writers) + " wrote");
    }
  }
}

// Several pieces of 16 MiB, whose ends lie within tensors.
void large_files_and_damage() {
  std::mt19937 random(11);
  const ParameterLayout layout = layout_of(256, 2, 24000);
  const State state = random_state(layout.count, DataType::f32, 3);
  const Folder folder;
  const Saved saved = save(folder.path, layout, state, deal(layout.count, 3, random));
  std::vector<ElementRange> all;
  for (const StateKind kind : kinds) all.push_back({kind, 0, layout.count});
  const State read = load(saved, state, all, 3);
  expect(state.bytes == read.bytes, "a state of several pieces");
  const auto largest = std::max_element(saved.files.begin(), saved.files.end(), [](const StoredFile& a, const StoredFile& b) { return a.bytes < b.bytes; });
  expect(largest->pieces.size() > 1, "several pieces");
  expect(hash_file(largest->path, 2).pieces == largest->pieces, "a file's digests");
  Saved missing = saved;
  std::erase_if(missing.ranges, [&](const StoredRange& range) { return range.file == static_cast<std::size_t>(largest - saved.files.begin()); });
  expect_throws([&] { load(missing, state, all, 3); }, "are in no file");
  {
    std::fstream file(largest->path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(piece_bytes + 12345);
    const char damaged = static_cast<char>(file.get() ^ 1);
    file.seekp(piece_bytes + 12345);
    file.put(damaged);
  }
  expect_throws([&] { load(saved, state, all, 3); }, largest->path + ": bytes 16777216 to ");
  std::filesystem::resize_file(largest->path, 5000);
  expect_throws([&] { load(saved, state, all, 3); }, "has 5000 bytes, not " + std::to_string(largest->bytes));
  std::filesystem::remove(largest->path);
  expect_throws([&] { load(saved, state, all, 3); }, "ENOENT");
}

void refusals() {
  const ParameterLayout layout = layout_of(4, 1, 5);
  const std::shared_ptr<Device> device = make_cpu_device(1);
  std::vector<float> values(static_cast<std::size_t>(layout.count), 1.0f);
  const std::vector<HeldRange> held{{{StateKind::weights, 0, layout.count}, DataType::f32, values.data()}};
  const auto write_to = [&](const std::string& path) {
    StateWriter writer(device, device->snapshot({{values.data(), values.size() * sizeof(float)}}), {plan_shard_file(path, layout, held, {StateKind::weights})}, 1);
    writer.wait();
  };
  if (std::filesystem::exists("/dev/full")) expect_throws([&] { write_to("/dev/full"); }, "ENOSPC");
  expect_throws([&] { write_to("/nowhere/at/all"); }, "ENOENT");
  // Memory that nothing was ever written to reads as zeros.
  const Folder folder;
  StateWriter writer(device, device->snapshot({{nullptr, values.size() * sizeof(float)}}), {plan_shard_file(folder.path + "/zeros", layout, held, {StateKind::weights})}, 1);
  const WrittenFile written = writer.wait()[0];
  std::ifstream file(written.path, std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  expect(static_cast<std::int64_t>(text.size()) == written.bytes && text.substr(text.size() - 4 * values.size()) == std::string(4 * values.size(), '\0'),
        "zeros for what was never allocated");
}

}  // namespace

int main() {
  digests();
  any_ranks_to_any_others();
  large_files_and_damage();
  refusals();
  if (check::failures == 0) std::printf("checkpoints: all as promised (sha256 by %s)\n", sha256_implementation());
  return check::failures == 0 ? 0 : 1;
}
