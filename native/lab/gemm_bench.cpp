// Share of the machine's fp32 peak that the matrix product reaches on a training step's shapes.
//   gemm_bench [threads] [seconds per shape]
// The last line is JSON: {"instruction_set", "threads", "peak", "shapes": [{"name", "m", "n", "k", "gflops", "share"}]}.
// The peak is measured again next to every shape: on a shared machine a ratio is only worth something against its own moment.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "native/device/cpu/cpu_device.h"
#include "native/device/cpu/throughput.h"

int main(int count, char** arguments) {
  using tinyllama::MatmulShape;
  const int threads = count > 1 ? std::atoi(arguments[1]) : 2;
  const double seconds = count > 2 ? std::atof(arguments[2]) : 0.3;
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  struct Case {
    std::string name;
    MatmulShape shape;
  };
  std::vector<Case> cases;
  struct Model {
    const char* name;
    std::int64_t rows, width, kv_width, feed_forward;
  };
  for (const Model& model : {Model{"128", 2048, 128, 64, 352}, Model{"192", 2048, 192, 64, 512}, Model{"256", 2048, 256, 128, 704},
                             Model{"288", 2048, 288, 288, 768}, Model{"768", 512, 768, 768, 2048}}) {
    const auto add = [&](const char* operation, std::int64_t out, std::int64_t in) {
      const std::string name = std::string("width ") + model.name + " " + operation;
      cases.push_back({name + " forward", {model.rows, out, in, false, true, false}});
      cases.push_back({name + " dx", {model.rows, in, out, false, false, false}});
      cases.push_back({name + " dW", {out, in, model.rows, true, false, true}});
    };
    add("qkv", model.width + 2 * model.kv_width, model.width);
    add("o", model.width, model.width);
    add("gate_up", 2 * model.feed_forward, model.width);
    add("down", model.width, model.feed_forward);
  }
  for (const std::int64_t width : {std::int64_t{128}, std::int64_t{256}, std::int64_t{768}}) {
    cases.push_back({"width " + std::to_string(width) + " head forward", {256, 32000, width, false, true, false}});
  }

  std::string json = "{\"instruction_set\": \"" + std::string(tinyllama::cpu_instruction_set()) + "\", ";
  json += "\"threads\": " + std::to_string(threads) + ", \"peak\": " + std::to_string(tinyllama::measure_peak(threads, 1.0)) + ", \"shapes\": [";
  std::printf("%-28s %6s %6s %6s %10s %10s %7s\n", "shape", "m", "n", "k", "GFLOP/s", "peak", "share");
  double shares = 0;
  for (const Case& each : cases) {
    const double peak = tinyllama::measure_peak(threads, 0.1);
    const double rate = tinyllama::measure_matmul(threads, each.shape, seconds);
    const MatmulShape& s = each.shape;
    shares += rate / peak;
    std::printf("%-28s %6ld %6ld %6ld %10.1f %10.1f %6.1f%%\n", each.name.c_str(), static_cast<long>(s.m), static_cast<long>(s.n),
                static_cast<long>(s.k), rate, peak, 100 * rate / peak);
    if (json.back() != '[') json += ", ";
    json += "{\"name\": \"" + each.name + "\", \"m\": " + std::to_string(s.m) + ", \"n\": " + std::to_string(s.n) +
            ", \"k\": " + std::to_string(s.k) + ", \"gflops\": " + std::to_string(rate) + ", \"share\": " +
            std::to_string(rate / peak) + "}";
  }
  std::printf("mean share %.1f%%\n%s]}\n", 100 * shares / static_cast<double>(cases.size()), json.c_str());
  return 0;
}
