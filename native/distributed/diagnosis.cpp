#include "native/distributed/diagnosis.h"

#include <algorithm>
#include <optional>

#include "native/distributed/rank_list.h"

namespace tinyllama {
namespace {

// Where one member is, seen from the collective in question.
struct Standing {
  int rank = 0;
  std::optional<CollectiveLogView> log;
  std::optional<CollectiveEntry> here;  // what it issued at the same position of the same communicator
  std::optional<CollectiveEntry> last;  // the newest that it issued, of any communicator
  bool moves = true, ended = false;

  std::string process() const {
    return log ? " (process " + std::to_string(log->header.process) + " on " + log->header.host + ")" : "";
  }
};

Standing stand(const std::string& folder, const std::string& nonce, int rank, const CollectiveEntry& entry) {
  Standing standing;
  standing.rank = rank;
  standing.log = read_collective_log(folder, rank, nonce);
  if (!standing.log) return standing;
  for (const CollectiveEntry& other : standing.log->entries)
    if (other.communicator == entry.communicator && other.position == entry.position) standing.here = other;
  if (!standing.log->entries.empty()) standing.last = standing.log->entries.back();
  standing.ended = standing.log->header.closed || process_has_ended(standing.log->header);
  return standing;
}

std::string seconds_in_words(double seconds) { return std::to_string(static_cast<long>(seconds + 0.5)) + " s"; }

// "; ranks 0, 1, 2 wait in it"
std::string waiting(const Stall& stall, const std::vector<Standing>& standings) {
  std::vector<int> ranks = {stall.rank};
  for (const Standing& standing : standings)
    if (standing.here && standing.moves && !standing.ended) ranks.push_back(standing.rank);
  std::sort(ranks.begin(), ranks.end());
  return "; " + rank_list(ranks) + (ranks.size() == 1 ? " waits" : " wait") + " in it";
}

// The first position, as far as the logs go back, at which a member issued something else than this rank; what each issued there.
std::string mismatch(const std::optional<CollectiveLogView>& own, const Stall& stall, const std::vector<Standing>& standings) {
  if (!own) return "";
  const auto issued_at = [&](const CollectiveLogView& log, std::uint64_t position) {
    std::optional<CollectiveEntry> found;
    for (const CollectiveEntry& entry : log.entries)
      if (entry.communicator == stall.entry.communicator && entry.position == position) found = entry;
    return found;
  };
  for (const CollectiveEntry& entry : own->entries) {
    if (entry.communicator != stall.entry.communicator) continue;
    std::map<std::string, std::vector<int>> issued;
    issued[in_words(entry)].push_back(stall.rank);
    for (const Standing& standing : standings) {
      const auto theirs = standing.log ? issued_at(*standing.log, entry.position) : std::nullopt;
      if (theirs) issued[in_words(*theirs)].push_back(standing.rank);
    }
    if (issued.size() == 1) continue;
    std::string text = "the ranks do not issue the same collectives: ";
    bool first = true;
    for (auto& [what, ranks] : issued) {
      std::sort(ranks.begin(), ranks.end());
      text += (first ? "" : ", ") + rank_list(ranks) + " issued " + what;
      first = false;
    }
    return text;
  }
  return "";
}

// What is wrong with one that does not wait as it should; empty where nothing is.
std::string trouble(const Standing& standing, const Stall& stall) {
  const std::string who = "rank " + std::to_string(standing.rank), what = in_words(stall.entry), since = " since " + seconds_in_words(stall.seconds);
  if (!standing.log) return who + " has no log of this run and stands before " + what + since;
  const bool inside = standing.here.has_value();
  const std::string place = inside ? "in " + what : "before " + what;
  if (standing.ended)
    return who + standing.process() + (standing.log->header.closed ? " has left and stands " : " has ended and stands ") + place + since;
  if (!standing.moves) return who + standing.process() + " does not move and stands " + place + since;
  if (inside) return "";
  std::string after = "it has issued nothing yet";
  if (standing.last) {
    after = (standing.last->ended ? "it is past " : "it is in ") + in_words(*standing.last);
    if (standing.last->communicator != stall.entry.communicator) after += " with other ranks";
  }
  return who + " stands before " + what + since + " (" + after + ")";
}

std::vector<Standing> stand_all(const std::string& folder, const std::string& nonce, const Stall& stall) {
  std::vector<Standing> standings;
  for (const int member : stall.members)
    if (member != stall.rank) standings.push_back(stand(folder, nonce, member, stall.entry));
  return standings;
}

}  // namespace

Heartbeats read_heartbeats(const std::string& folder, const std::string& nonce, const std::vector<int>& members) {
  Heartbeats beats;
  for (const int member : members)
    if (const auto header = read_collective_log_header(folder, member, nonce)) beats[member] = header->heartbeat;
  return beats;
}

std::vector<int> ended_members(const std::string& folder, const std::string& nonce, const std::vector<int>& members) {
  std::vector<int> ended;
  for (const int member : members) {
    const auto header = read_collective_log_header(folder, member, nonce);
    if (header && !header->closed && process_has_ended(*header)) ended.push_back(member);
  }
  return ended;
}

std::string explain_failure(const std::string& folder, const std::string& nonce, const Stall& stall) {
  const std::vector<Standing> standings = stand_all(folder, nonce, stall);
  std::string text = mismatch(read_collective_log(folder, stall.rank, nonce), stall, standings);
  if (!text.empty()) return text;
  for (const Standing& standing : standings)
    if (standing.ended) text += (text.empty() ? "" : "; ") + trouble(standing, stall);
  return text;
}

std::string diagnose(const std::string& folder, const std::string& nonce, const Stall& stall, const Heartbeats& before) {
  std::vector<Standing> standings = stand_all(folder, nonce, stall);
  for (Standing& standing : standings) {
    const auto known = before.find(standing.rank);
    standing.moves = !standing.log || known == before.end() || known->second != standing.log->header.heartbeat;
  }
  if (const std::string found = mismatch(read_collective_log(folder, stall.rank, nonce), stall, standings); !found.empty()) return found + ", since " + seconds_in_words(stall.seconds);
  std::string text;
  for (const Standing& standing : standings)
    if (const std::string one = trouble(standing, stall); !one.empty()) text += (text.empty() ? "" : "; ") + one;
  if (!text.empty()) return text + waiting(stall, standings);
  return "all ranks are in " + in_words(stall.entry) + " since " + seconds_in_words(stall.seconds) +
         " and it does not end: look at the network and the GPUs between them" + waiting(stall, standings);
}

}  // namespace tinyllama
