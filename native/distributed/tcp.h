// TCP with deadlines, as far as ranks need it to find each other.
#pragma once
#include <chrono>
#include <cstddef>
#include <optional>
#include <string>

namespace tinyllama {

using Deadline = std::chrono::steady_clock::time_point;

class Socket {
 public:
  explicit Socket(int descriptor) : descriptor_(descriptor) {}
  ~Socket();
  Socket(Socket&& other) noexcept;
  Socket& operator=(Socket&& other) noexcept;
  int descriptor() const { return descriptor_; }

  // All of it, or false: the other side has gone, or the deadline has passed.
  bool send(const std::string& bytes, Deadline deadline);
  bool receive(void* bytes, std::size_t count, Deadline deadline);
  // Who is on the other side: "10.0.0.3".
  std::string peer() const;

 private:
  int descriptor_;
};

// On all of this machine's addresses. Throws Error where the port is in use or not allowed.
Socket listen_on(int port);
// The next connection, or none by the deadline.
std::optional<Socket> accept_from(Socket& listener, Deadline deadline);

// Whether the name resolves; else `reason` says what the resolver says.
bool resolves(const std::string& address, int port, std::string& reason);
// One attempt; none with the reason where it fails.
std::optional<Socket> connect_to(const std::string& address, int port, Deadline deadline, std::string& reason);

}  // namespace tinyllama
