#include "native/distributed/agreement.h"

#include <algorithm>
#include <map>

#include "native/core/error.h"
#include "native/distributed/message.h"
#include "native/distributed/rank_list.h"

namespace tinyllama {
namespace {

const char* const absent = "nothing of it";

std::string value_of(const Agreement& agreement, const std::string& name) {
  for (const AgreementField& field : agreement)
    if (field.name == name) return field.value;
  return absent;
}

// A value as far as a line of a message has room.
std::string shown(const std::string& value) {
  constexpr std::size_t most = 80;
  return value.size() <= most ? value : value.substr(0, most) + "…";
}

}  // namespace

std::string disagreement(const std::vector<Agreement>& by_rank) {
  std::vector<std::string> names;
  for (const Agreement& agreement : by_rank)
    for (const AgreementField& field : agreement)
      if (std::find(names.begin(), names.end(), field.name) == names.end()) names.push_back(field.name);
  std::string text;
  for (const std::string& name : names) {
    std::map<std::string, std::vector<int>> holders;
    for (std::size_t r = 0; r < by_rank.size(); ++r) holders[value_of(by_rank[r], name)].push_back(static_cast<int>(r));
    if (holders.size() == 1) continue;
    text += (text.empty() ? "the ranks differ in " : "; in ") + name + ": ";
    bool first = true;
    for (const auto& [value, ranks] : holders) {
      text += (first ? "" : ", ") + rank_list(ranks) + (ranks.size() == 1 ? " has " : " have ") + shown(value);
      first = false;
    }
  }
  return text.empty() ? text : text + ". Next: start all ranks with the same version, files and parameters";
}

std::string encode_agreement(const Agreement& agreement) {
  MessageWriter writer;
  writer.number(static_cast<std::uint32_t>(agreement.size()));
  for (const AgreementField& field : agreement) writer.text(field.name).text(field.value);
  return writer.bytes();
}

Agreement decode_agreement(const std::string& bytes) {
  MessageReader reader(bytes);
  Agreement agreement;
  for (std::uint32_t left = reader.number(); left > 0; --left) {
    AgreementField field;
    field.name = reader.text();
    field.value = reader.text();
    agreement.push_back(std::move(field));
  }
  return agreement;
}

void check_agreement(Communicator& ranks, const Agreement& agreement) {
  std::string own = encode_agreement(agreement);
  const std::size_t size = static_cast<std::size_t>(ranks.size());
  std::vector<std::uint64_t> lengths(size);
  const std::uint64_t length = own.size();
  ranks.exchange(lengths.data(), &length, sizeof(length));
  const std::size_t longest = *std::max_element(lengths.begin(), lengths.end());
  own.resize(longest);
  std::string all(longest * size, '\0');
  ranks.exchange(all.data(), own.data(), longest);
  std::vector<Agreement> by_rank;
  for (std::size_t r = 0; r < size; ++r) by_rank.push_back(decode_agreement(all.substr(r * longest, lengths[r])));
  const std::string found = disagreement(by_rank);
  require(found.empty(), found);
}

}  // namespace tinyllama
