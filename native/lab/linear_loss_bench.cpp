// Share of the machine's fp32 peak that the fused linear cross entropy reaches, its three products counted (6 · rows · V · D operations).
//   linear_loss_bench [threads] [seconds per shape]
// The last line is JSON: {"instruction_set", "threads", "shapes": [{"rows", "vocabulary", "width", "gflops", "share"}]}.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "native/device/cpu/cpu_device.h"
#include "native/device/cpu/throughput.h"

namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

}  // namespace

int main(int count, char** arguments) {
  using namespace tinyllama;
  const int threads = count > 1 ? std::atoi(arguments[1]) : 2;
  const double seconds = count > 2 ? std::atof(arguments[2]) : 1.0;
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  const auto device = make_cpu_device(threads);
  std::string json = "{\"instruction_set\": \"" + std::string(cpu_instruction_set()) + "\", \"threads\": " + std::to_string(threads);
  json += ", \"shapes\": [";
  constexpr std::int64_t vocabulary = 32000;
  constexpr float scale = 1e-3f;
  for (const std::int64_t rows : {std::int64_t{2048}, std::int64_t{512}}) {
    for (const std::int64_t width : {std::int64_t{128}, std::int64_t{192}, std::int64_t{256}, std::int64_t{288}, std::int64_t{768}}) {
      std::vector<float> hidden(static_cast<std::size_t>(rows * width)), dhidden(hidden.size()), losses(static_cast<std::size_t>(rows));
      std::vector<float> weight(static_cast<std::size_t>(vocabulary * width)), dweight(weight.size());
      for (std::size_t i = 0; i < hidden.size(); ++i) hidden[i] = static_cast<float>(i % 251) / 125.f - 1.f;
      for (std::size_t i = 0; i < weight.size(); ++i) weight[i] = static_cast<float>(i % 241) / 1200.f - 0.1f;
      std::vector<std::int32_t> targets(losses.size());
      for (std::size_t i = 0; i < targets.size(); ++i) targets[i] = static_cast<std::int32_t>(i * 7919 % vocabulary);
      const auto run = [&] {
        device->linear_cross_entropy(losses.data(), matrix(dhidden.data(), rows, width), matrix(dweight.data(), vocabulary, width),
                                     matrix(hidden.data(), rows, width), matrix(weight.data(), vocabulary, width), targets.data(), &scale);
      };
      run();
      const double peak = measure_peak(threads, 0.2);
      std::vector<double> times;
      const double end = now() + seconds;
      do {
        const double start = now();
        run();
        times.push_back(now() - start);
      } while (now() < end || times.size() < 3);
      std::sort(times.begin(), times.end());
      const double operations = 6e-9 * static_cast<double>(rows * width * vocabulary);
      const double rate = operations / times[times.size() / 2];
      std::printf("rows %5ld width %4ld  %8.2f ms  %6.1f GFLOP/s (best %6.1f)  peak %6.1f  share %5.1f%%\n", static_cast<long>(rows),
                  static_cast<long>(width), times[times.size() / 2] * 1e3, rate, operations / times[0], peak, 100 * rate / peak);
      if (json.back() != '[') json += ", ";
      json += "{\"rows\": " + std::to_string(rows) + ", \"vocabulary\": " + std::to_string(vocabulary) + ", \"width\": " +
              std::to_string(width) + ", \"gflops\": " + std::to_string(rate) + ", \"share\": " + std::to_string(rate / peak) + "}";
    }
  }
  std::printf("%s]}\n", json.c_str());
  return 0;
}
