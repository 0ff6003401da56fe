// Ranks as threads that find each other by TCP on this machine, and every way in which they do not.
#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdio>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "native/core/error.h"
#include "native/distributed/rendezvous.h"
#include "native/distributed/single_communicator.h"
#include "native/distributed/tcp.h"
#include "test/native/device_check.h"

using namespace tinyllama;
using check::expect;

namespace {

const Agreement agreed = {{"version", "0.1.0"}, {"seed", "3407"}, {"data", "sha256:77aa"}};

// A port that no one listens on now.
int free_port() {
  const int descriptor = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  bind(descriptor, reinterpret_cast<sockaddr*>(&address), size);
  getsockname(descriptor, reinterpret_cast<sockaddr*>(&address), &size);
  close(descriptor);
  return ntohs(address.sin_port);
}

RendezvousOptions options(int rank, int size, int port, double timeout = 20) {
  return {.rank = rank, .size = size, .address = "127.0.0.1", .port = port, .nonce = "run-1", .agreement = agreed, .timeout = timeout};
}

// What became of each: the payload, or "error: " and the message.
std::vector<std::string> meet(const std::vector<RendezvousOptions>& all) {
  std::vector<std::string> results(all.size());
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < all.size(); ++i) {
    threads.emplace_back([&, i] {
      try {
        results[i] = rendezvous(all[i], all[i].rank == 0 ? "from rank 0" : "");
      } catch (const Error& error) {
        results[i] = std::string("error: ") + error.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return results;
}

void expect_in(const std::string& text, const std::string& part, const std::string& what) {
  expect(text.find(part) != std::string::npos, what + ": " + text);
}

void all_come() {
  for (const int size : {1, 2, 5, 16}) {
    const int port = free_port();
    std::vector<RendezvousOptions> all;
    for (int r = size - 1; r >= 0; --r) all.push_back(options(r, size, port));  // rank 0 last: the others wait for it
    for (const std::string& result : meet(all)) expect(result == "from rank 0", "a meeting of " + std::to_string(size) + ": " + result);
  }
}

void one_disagrees() {
  const int port = free_port();
  std::vector<RendezvousOptions> all = {options(0, 3, port), options(1, 3, port), options(2, 3, port)};
  all[2].agreement[1].value = "3408";
  for (const std::string& result : meet(all)) {
    expect_in(result, "the ranks differ in seed: ranks 0, 1 have 3407, rank 2 has 3408. Next:", "another seed");
    expect(result.find("version") == result.find("version, files"), "only the seed is named: " + result);
  }
  all[1].agreement.pop_back();
  expect_in(meet(all)[0], "; in data: rank 1 has nothing of it, ranks 0, 2 have sha256:77aa", "a field that is missing");
}

void one_comes_twice() {
  const int port = free_port();
  for (const std::string& result : meet({options(0, 3, port), options(1, 3, port), options(1, 3, port)}))
    expect_in(result, "rank 1 of 3 (from 127.0.0.1) came twice", "the same rank twice");
}

void one_is_of_another_size() {
  const int port = free_port();
  for (const std::string& result : meet({options(0, 2, port), options(3, 4, port)}))
    expect_in(result, "rank 3 of 4 (from 127.0.0.1) came to a world of 2", "another world size");
}

void one_does_not_come() {
  const int port = free_port();
  const auto results = meet({options(0, 4, port, 1), options(2, 4, port, 5)});
  for (const std::string& result : results) expect_in(result, "ranks 1, 3 of 4 did not come to rank 0 at port " + std::to_string(port) + " within 1 s", "two are missing");
}

void strangers_do_not_count() {
  const int port = free_port();
  RendezvousOptions stranger = options(1, 2, port);
  stranger.nonce = "run-0";
  std::thread garbage([&] {
    std::string reason;
    const Deadline deadline = std::chrono::steady_clock::now() + std::chrono::seconds(5);
    for (int i = 0; i < 50; ++i) {
      if (auto socket = connect_to("127.0.0.1", port, deadline, reason)) {
        socket->send("GET / HTTP/1.1\r\n\r\n", deadline);
        return;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
  });
  std::thread late([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(500));
    expect(meet({options(1, 2, port)})[0] == "from rank 0", "the right rank 1, after a wrong one");
  });
  const auto results = meet({options(0, 2, port), stranger});
  late.join();
  garbage.join();
  expect(results[0] == "from rank 0", "rank 0 beside strangers: " + results[0]);
  expect_in(results[1], "a process of another run listens there", "a rank with another nonce");
  RendezvousOptions alone = options(0, 2, free_port(), 2);
  stranger.port = alone.port;
  expect_in(meet({alone, stranger})[0], "1 processes that are not of this run were refused, the last from 127.0.0.1", "only a stranger came");
}

void nowhere_to_go() {
  const int port = free_port();
  const Socket taken = listen_on(port);
  expect_in(meet({options(0, 2, port)})[0], "port " + std::to_string(port) + " is in use on this machine", "a port in use");
  expect_in(meet({options(1, 2, port, 1)})[0], "it took the connection and did not answer", "someone else listens there");
  expect_in(meet({options(1, 2, free_port(), 1)})[0], "Connection refused; does rank 0 run", "no one listens there");
  RendezvousOptions lost = options(1, 2, port, 1);
  lost.address = "no-such-host.invalid";
  expect_in(meet({lost})[0], "MASTER_ADDR no-such-host.invalid does not resolve on rank 1", "an address that does not resolve");
  lost.rank = 0;
  expect_in(meet({lost})[0], "MASTER_ADDR no-such-host.invalid does not resolve on rank 0", "an address that does not resolve, at rank 0");
  expect_in(meet({options(0, 2, 70000)})[0], "MASTER_PORT is 70000", "a port that is none");
}

void agreement_in_a_message() {
  const Agreement back = decode_agreement(encode_agreement(agreed));
  expect(back.size() == 3 && back[2].name == "data" && back[2].value == "sha256:77aa", "an agreement survives its encoding");
  bool caught = false;
  try {
    decode_agreement(encode_agreement(agreed).substr(0, 20));
  } catch (const Error&) {
    caught = true;
  }
  expect(caught, "a message that is cut off");
  const auto device = make_cpu_device(1);
  check_agreement(*make_single_communicator(*device), agreed);
}

}  // namespace

int main() {
  all_come();
  one_disagrees();
  one_comes_twice();
  one_is_of_another_size();
  one_does_not_come();
  strangers_do_not_count();
  nowhere_to_go();
  agreement_in_a_message();
  std::printf("rendezvous: %s\n", check::failures == 0 ? "all as expected" : "FAILED");
  return check::failures == 0 ? 0 : 1;
}
