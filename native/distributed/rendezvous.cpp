#include "native/distributed/rendezvous.h"

#include <algorithm>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "native/core/error.h"
#include "native/distributed/message.h"
#include "native/distributed/rank_list.h"
#include "native/distributed/tcp.h"

namespace tinyllama {
namespace {

using std::chrono::duration;
using std::chrono::steady_clock;

constexpr std::uint32_t magic = 0x31765254;  // "TRv1": also the protocol's version
constexpr std::uint32_t longest_message = 1 << 20;
constexpr double slowest_introduction = 5;  // seconds: who connects and says nothing holds up the others no longer
constexpr double slowest_name_service = 10;  // a name may be new, in a cluster that has just started the machine behind it
constexpr auto pause = std::chrono::milliseconds(100);

Deadline in_seconds(double seconds) { return steady_clock::now() + std::chrono::duration_cast<steady_clock::duration>(duration<double>(seconds)); }

std::string in_words(double seconds) {
  const std::string text = std::to_string(seconds);
  return text.substr(0, seconds == static_cast<long>(seconds) ? text.find('.') : text.find('.') + 2) + " s";
}

bool send_message(Socket& socket, const std::string& bytes, Deadline deadline) {
  MessageWriter head;
  head.number(magic).number(static_cast<std::uint32_t>(bytes.size()));
  return socket.send(head.bytes() + bytes, deadline);
}

std::optional<std::string> receive_message(Socket& socket, Deadline deadline) {
  std::uint32_t head[2] = {};
  if (!socket.receive(head, sizeof(head), deadline) || head[0] != magic || head[1] > longest_message) return std::nullopt;
  std::string bytes(head[1], '\0');
  if (!socket.receive(bytes.data(), bytes.size(), deadline)) return std::nullopt;
  return bytes;
}

// What rank 0 answers.
enum class Verdict : std::uint32_t { welcome, refused };

void answer(Socket& socket, Verdict verdict, const std::string& text) {
  // One who has gone will see it elsewhere; the others must not wait for it.
  send_message(socket, MessageWriter().number(static_cast<std::uint32_t>(verdict)).text(text).bytes(), in_seconds(slowest_introduction));
}

// Rank 0's side.
class Host {
 public:
  explicit Host(const RendezvousOptions& options)
      : options_(options), listener_(listen_on(options.port)), guests_(static_cast<std::size_t>(options.size)) {
    agreements_.resize(guests_.size());
    agreements_[0] = options.agreement;
  }

  void gather() {
    const Deadline deadline = in_seconds(options_.timeout);
    for (int left = options_.size - 1; left > 0;) {
      std::optional<Socket> guest = accept_from(listener_, deadline);
      if (!guest) refuse_all(missing());
      left -= receive(std::move(*guest)) ? 1 : 0;
    }
    if (const std::string found = disagreement(agreements_); !found.empty()) refuse_all(found);
  }

  void welcome(const std::string& payload) {
    for (std::optional<Socket>& guest : guests_)
      if (guest) answer(*guest, Verdict::welcome, payload);
  }

 private:
  // Whether it is a rank of this run.
  bool receive(Socket guest) {
    const std::optional<std::string> message = receive_message(guest, in_seconds(slowest_introduction));
    if (!message) {
      strangers_.push_back(guest.peer());
      return false;
    }
    MessageReader reader(*message);
    const std::string nonce = reader.text();
    const int rank = static_cast<int>(reader.number()), size = static_cast<int>(reader.number());
    if (nonce != options_.nonce) {
      answer(guest, Verdict::refused, "a process of another run listens there: this run's rank 0 is elsewhere, or uses another MASTER_PORT");
      strangers_.push_back(guest.peer());
      return false;
    }
    std::optional<Socket>* place = rank > 0 && rank < options_.size ? &guests_[static_cast<std::size_t>(rank)] : nullptr;
    const std::string who = "rank " + std::to_string(rank) + " of " + std::to_string(size) + " (from " + guest.peer() + ")";
    std::string objection;
    if (!place) objection = who + " came to a world of " + std::to_string(options_.size) + ": RANK and WORLD_SIZE must fit on all ranks";
    if (place && *place) objection = who + " came twice, the first time from " + (*place)->peer() + ": every process needs a RANK of its own";
    if (!objection.empty()) {
      answer(guest, Verdict::refused, objection);
      refuse_all(objection);
    }
    agreements_[static_cast<std::size_t>(rank)] = decode_agreement(reader.text());
    place->emplace(std::move(guest));
    return true;
  }

  std::string missing() const {
    std::vector<int> absent;
    for (int r = 1; r < options_.size; ++r)
      if (!guests_[static_cast<std::size_t>(r)]) absent.push_back(r);
    std::string text = rank_list(absent) + " of " + std::to_string(options_.size) + " did not come to rank 0 at port " + std::to_string(options_.port) +
                       " within " + in_words(options_.timeout) + ": look at their own logs, and whether they reach " + options_.address;
    if (!strangers_.empty())
      text += "; " + std::to_string(strangers_.size()) + " processes that are not of this run were refused, the last from " + strangers_.back();
    return text;
  }

  [[noreturn]] void refuse_all(const std::string& reason) {
    for (std::optional<Socket>& guest : guests_)
      if (guest) answer(*guest, Verdict::refused, reason);
    throw Error(reason);
  }

  const RendezvousOptions& options_;
  Socket listener_;
  std::vector<std::optional<Socket>> guests_;  // by rank; rank 0's stays empty
  std::vector<Agreement> agreements_;
  std::vector<std::string> strangers_;
};

// One visit; none where it failed in a way that another visit may mend.
std::optional<std::string> visit(const RendezvousOptions& options, Deadline deadline, std::string& reason) {
  std::optional<Socket> socket = connect_to(options.address, options.port, deadline, reason);
  if (!socket) return std::nullopt;
  const std::string introduction = MessageWriter()
                                       .text(options.nonce)
                                       .number(static_cast<std::uint32_t>(options.rank))
                                       .number(static_cast<std::uint32_t>(options.size))
                                       .text(encode_agreement(options.agreement))
                                       .bytes();
  std::optional<std::string> message;
  if (send_message(*socket, introduction, deadline)) message = receive_message(*socket, deadline);
  if (!message) {
    reason = "it took the connection and did not answer";
    return std::nullopt;
  }
  MessageReader reader(*message);
  const auto verdict = static_cast<Verdict>(reader.number());
  std::string text = reader.text();
  require(verdict == Verdict::welcome, "rank 0 at " + options.address + ":" + std::to_string(options.port) + " refused rank " +
                                           std::to_string(options.rank) + ": " + text);
  return text;
}

void require_that_it_resolves(const RendezvousOptions& options) {
  const Deadline deadline = in_seconds(std::min(options.timeout, slowest_name_service));
  std::string reason;
  while (!resolves(options.address, options.port, reason)) {
    require(steady_clock::now() < deadline, "MASTER_ADDR " + options.address + " does not resolve on rank " + std::to_string(options.rank) + ": " +
                                                reason + "; it must be the name or address of the machine of rank 0");
    std::this_thread::sleep_for(pause);
  }
}

}  // namespace

std::string rendezvous(const RendezvousOptions& options, const std::string& payload) {
  require(encode_agreement(options.agreement).size() + options.nonce.size() < longest_message / 2 && payload.size() < longest_message / 2,
          "too much to agree on: digests, not files");
  if (options.size == 1) return payload;
  require_that_it_resolves(options);
  if (options.rank == 0) {
    Host host(options);
    host.gather();
    host.welcome(payload);
    return payload;
  }
  const Deadline deadline = in_seconds(options.timeout);
  for (std::string reason;;) {
    if (std::optional<std::string> got = visit(options, deadline, reason)) return *got;
    require(steady_clock::now() < deadline, "rank " + std::to_string(options.rank) + " did not get through to rank 0 at " + options.address + ":" +
                                                std::to_string(options.port) + " within " + in_words(options.timeout) + ": " + reason +
                                                "; does rank 0 run, and does a firewall let it through?");
    std::this_thread::sleep_for(pause);
  }
}

}  // namespace tinyllama
