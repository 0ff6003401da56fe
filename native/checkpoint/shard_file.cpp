#include "native/checkpoint/shard_file.h"

#include <algorithm>
#include <utility>

namespace tinyllama {
namespace {

constexpr std::size_t data_alignment = 4096;

const char* prefix_of(StateKind kind) {
  switch (kind) {
    case StateKind::weights: return "";
    case StateKind::first_moment: return "first_moment.";
    default: return "second_moment.";
  }
}

// A held range, and where the snapshot has it.
struct Source {
  ElementRange elements;
  DataType type;
  std::int64_t snapshot_offset;
};

std::vector<Source> sources_of(const std::vector<HeldRange>& held, const std::vector<StateKind>& kinds) {
  std::vector<Source> all;
  std::int64_t at = 0;
  for (const HeldRange& range : held) {
    all.push_back({range.elements, range.type, at});
    at += range.bytes();
  }
  std::vector<Source> chosen;
  for (const StateKind kind : kinds) {
    const auto first = static_cast<std::ptrdiff_t>(chosen.size());
    for (const Source& source : all)
      if (source.elements.kind == kind) chosen.push_back(source);
    std::sort(chosen.begin() + first, chosen.end(), [](const Source& a, const Source& b) { return a.elements.offset < b.elements.offset; });
  }
  return chosen;
}

std::string json_list(const std::vector<std::int64_t>& values) {
  std::string text = "[";
  for (const std::int64_t value : values) {
    if (text.size() > 1) text += ',';
    text += std::to_string(value);
  }
  return text += ']';
}

// Adds to the section before where it goes on from there.
void append(std::vector<FileSection>& sections, const FileSection& next) {
  if (!sections.empty()) {
    FileSection& last = sections.back();
    const std::int64_t bytes = last.bytes();
    if (last.elements.kind == next.elements.kind && last.type == next.type && last.elements.offset + last.elements.count == next.elements.offset &&
        last.file_offset + bytes == next.file_offset && last.snapshot_offset + bytes == next.snapshot_offset) {
      last.elements.count += next.elements.count;
      return;
    }
  }
  sections.push_back(next);
}

}  // namespace

ShardFile plan_shard_file(std::string path, const ParameterLayout& layout, const std::vector<HeldRange>& held, const std::vector<StateKind>& kinds) {
  ShardFile file{std::move(path), "", {}, 0};
  std::string json = R"({"__metadata__":{"format":"pt"})";
  std::int64_t data = 0;
  for (const auto& [elements, type, snapshot_offset] : sources_of(held, kinds)) {
    const std::int64_t end = elements.offset + elements.count;
    for (const Parameter& parameter : layout.parameters) {
      const std::int64_t from = std::max(elements.offset, parameter.offset), to = std::min(end, parameter.offset + parameter.count);
      if (from >= to) continue;
      const std::int64_t begin = from - parameter.offset, count = to - from;
      const bool whole = count == parameter.count;
      std::string range;
      if (!whole) range.append("[").append(std::to_string(begin)).append(":").append(std::to_string(begin + count)).append("]");
      json += ",\"" + (prefix_of(elements.kind) + parameter.name) + range +
              (type == DataType::f32 ? R"(":{"dtype":"F32","shape":)" : R"(":{"dtype":"BF16","shape":)") +
              json_list(whole ? parameter.shape : std::vector<std::int64_t>{count}) +
              ",\"data_offsets\":" + json_list({data, data + count * bytes_of(type)}) + "}";
      append(file.sections, {{elements.kind, from, count}, type, data, snapshot_offset + (from - elements.offset) * bytes_of(type)});
      data += count * bytes_of(type);
    }
  }
  json += "}";
  const std::size_t start = (8 + json.size() + data_alignment - 1) / data_alignment * data_alignment, length = start - 8;
  for (std::size_t i = 0; i < 8; ++i) file.header += static_cast<char>(length >> 8 * i & 0xff);
  file.header += json;
  file.header.resize(start, ' ');
  for (FileSection& section : file.sections) section.file_offset += static_cast<std::int64_t>(start);
  file.bytes = static_cast<std::int64_t>(start) + data;
  return file;
}

}  // namespace tinyllama
