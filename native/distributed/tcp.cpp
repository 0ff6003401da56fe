#include "native/distributed/tcp.h"

#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <utility>

#include "native/core/error.h"

namespace tinyllama {
namespace {

// False by the deadline. Looks again after a signal.
bool ready(int descriptor, short events, Deadline deadline) {
  for (;;) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now()).count();
    pollfd wanted{descriptor, events, 0};
    const int found = poll(&wanted, 1, static_cast<int>(std::clamp<long long>(left, 0, 60000)));
    if (found > 0) return true;
    if (found == 0 && left <= 0) return false;
    if (found < 0 && errno != EINTR) return false;
  }
}

using Addresses = std::unique_ptr<addrinfo, decltype(&freeaddrinfo)>;

Addresses look_up(const std::string& address, int port, std::string& reason) {
  addrinfo hints{}, *found = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  const int status = getaddrinfo(address.c_str(), std::to_string(port).c_str(), &hints, &found);
  if (status != 0) reason = status == EAI_SYSTEM ? std::strerror(errno) : gai_strerror(status);
  return {status == 0 ? found : nullptr, &freeaddrinfo};
}

bool connected(int descriptor, const addrinfo& to, Deadline deadline) {
  if (connect(descriptor, to.ai_addr, to.ai_addrlen) == 0) return true;
  if (errno != EINPROGRESS) return false;
  if (!ready(descriptor, POLLOUT, deadline)) {
    errno = ETIMEDOUT;
    return false;
  }
  int error = 0;
  socklen_t size = sizeof(error);
  getsockopt(descriptor, SOL_SOCKET, SO_ERROR, &error, &size);
  errno = error;
  return error == 0;
}

}  // namespace

Socket::~Socket() {
  if (descriptor_ >= 0) close(descriptor_);
}
Socket::Socket(Socket&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}
Socket& Socket::operator=(Socket&& other) noexcept {
  std::swap(descriptor_, other.descriptor_);
  return *this;
}

bool Socket::send(const std::string& bytes, Deadline deadline) {
  for (std::size_t sent = 0; sent < bytes.size();) {
    if (!ready(descriptor_, POLLOUT, deadline)) return false;
    const ssize_t count = ::send(descriptor_, bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (count < 0 && errno != EAGAIN && errno != EINTR) return false;
    sent += static_cast<std::size_t>(std::max<ssize_t>(count, 0));
  }
  return true;
}

bool Socket::receive(void* bytes, std::size_t count, Deadline deadline) {
  for (std::size_t got = 0; got < count;) {
    if (!ready(descriptor_, POLLIN, deadline)) return false;
    const ssize_t more = recv(descriptor_, static_cast<char*>(bytes) + got, count - got, MSG_DONTWAIT);
    if (more == 0 || (more < 0 && errno != EAGAIN && errno != EINTR)) return false;
    got += static_cast<std::size_t>(std::max<ssize_t>(more, 0));
  }
  return true;
}

std::string Socket::peer() const {
  sockaddr_storage address{};
  socklen_t size = sizeof(address);
  char host[NI_MAXHOST] = "an unknown address";
  if (getpeername(descriptor_, reinterpret_cast<sockaddr*>(&address), &size) == 0)
    getnameinfo(reinterpret_cast<sockaddr*>(&address), size, host, sizeof(host), nullptr, 0, NI_NUMERICHOST);
  // An IPv4 address that came in by an IPv6 socket.
  const std::string text = host, mapped = "::ffff:";
  return text.starts_with(mapped) ? text.substr(mapped.size()) : text;
}

Socket listen_on(int port) {
  require(port > 0 && port < 65536, "MASTER_PORT is " + std::to_string(port) + "; it must be from 1 to 65535");
  const int six = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
  Socket listener(six >= 0 ? six : socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const int on = 1, off = 0;
  setsockopt(listener.descriptor(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  sockaddr_in6 any6{};
  any6.sin6_family = AF_INET6;
  any6.sin6_port = htons(static_cast<std::uint16_t>(port));
  sockaddr_in any4{};
  any4.sin_family = AF_INET;
  any4.sin_port = htons(static_cast<std::uint16_t>(port));
  if (six >= 0) setsockopt(six, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
  const int bound = six >= 0 ? bind(six, reinterpret_cast<sockaddr*>(&any6), sizeof(any6))
                             : bind(listener.descriptor(), reinterpret_cast<sockaddr*>(&any4), sizeof(any4));
  if (bound == 0 && listen(listener.descriptor(), SOMAXCONN) == 0) return listener;
  require(errno != EADDRINUSE, "port " + std::to_string(port) + " is in use on this machine, by another run or program: choose another MASTER_PORT" +
                                   " for all ranks (ss -ltnp shows who listens)");
  throw Error("rank 0 cannot listen on port " + std::to_string(port) + ": " + std::strerror(errno) + ": choose another MASTER_PORT for all ranks");
}

std::optional<Socket> accept_from(Socket& listener, Deadline deadline) {
  while (ready(listener.descriptor(), POLLIN, deadline)) {
    const int descriptor = accept4(listener.descriptor(), nullptr, nullptr, SOCK_CLOEXEC);
    if (descriptor >= 0) return Socket(descriptor);
    // The one who knocked has gone again: the next one.
    require(errno == ECONNABORTED || errno == EINTR || errno == EAGAIN, std::string("rank 0 cannot accept ranks: ") + std::strerror(errno));
  }
  return std::nullopt;
}

bool resolves(const std::string& address, int port, std::string& reason) { return look_up(address, port, reason) != nullptr; }

std::optional<Socket> connect_to(const std::string& address, int port, Deadline deadline, std::string& reason) {
  const Addresses addresses = look_up(address, port, reason);
  for (const addrinfo* at = addresses.get(); at != nullptr; at = at->ai_next) {
    Socket candidate(socket(at->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (candidate.descriptor() >= 0 && connected(candidate.descriptor(), *at, deadline)) return candidate;
    reason = std::strerror(errno);
  }
  return std::nullopt;
}

}  // namespace tinyllama
