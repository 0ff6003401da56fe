// Attention's share of the machine's fp32 peak, counting the operations a causal mask leaves: 2 · B·H·T²·S forward (of 4), 5 · B·H·T²·S
// backward (of 10).
//   attention_bench [threads] [seconds per shape]
// The last line is JSON: {"instruction_set", "threads", "shapes": [{"batch", "length", ..., "forward", "backward"}]}, both shares.
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

template <class Run>
double median_seconds(double seconds, Run&& run) {
  std::vector<double> times;
  run();
  const double end = now() + seconds;
  do {
    const double start = now();
    run();
    times.push_back(now() - start);
  } while (now() < end || times.size() < 3);
  std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2), times.end());
  return times[times.size() / 2];
}

}  // namespace

int main(int count, char** arguments) {
  using namespace tinyllama;
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  const int threads = count > 1 ? std::atoi(arguments[1]) : 2;
  const double seconds = count > 2 ? std::atof(arguments[2]) : 0.5;
  const auto device = make_cpu_device(threads);
  std::string json = "{\"instruction_set\": \"" + std::string(cpu_instruction_set()) + "\", \"threads\": " + std::to_string(threads);
  json += ", \"shapes\": [";
  for (const AttentionShape& s : {AttentionShape{8, 256, 4, 2, 32}, AttentionShape{8, 256, 6, 2, 32}, AttentionShape{8, 256, 4, 2, 64},
                                  AttentionShape{8, 256, 6, 6, 48}, AttentionShape{2, 256, 12, 1, 64},
                                  AttentionShape{1, 2048, 12, 4, 64}}) {
    const std::int64_t rows = s.batch * s.length, width = (s.heads + 2 * s.kv_heads) * s.head_size, out_width = s.heads * s.head_size;
    std::vector<float> qkv(static_cast<std::size_t>(rows * width)), dqkv(qkv.size()), out(static_cast<std::size_t>(rows * out_width));
    std::vector<float> dout(out.size(), 0.5f), lse(static_cast<std::size_t>(s.batch * s.heads * s.length));
    for (std::size_t i = 0; i < qkv.size(); ++i) qkv[i] = static_cast<float>(i * 7919 % 1009) / 504.f - 1.f;
    const double forward = median_seconds(
        seconds, [&] { device->attention_forward(matrix(out.data(), rows, out_width), lse.data(), matrix(qkv.data(), rows, width), s, nullptr); });
    const double backward = median_seconds(seconds, [&] {
      device->attention_backward(matrix(dqkv.data(), rows, width), matrix(dout.data(), rows, out_width), matrix(qkv.data(), rows, width),
                                 matrix(out.data(), rows, out_width), lse.data(), s, nullptr);
    });
    const double peak = measure_peak(threads, 0.2);
    const double unit = 1e-9 * static_cast<double>(s.batch * s.heads * s.length * s.length * s.head_size);
    const double forward_share = 2 * unit / forward / peak, backward_share = 5 * unit / backward / peak;
    std::printf("B%ld T%ld H%ld G%ld S%ld  forward %7.2f ms %5.1f%%  backward %7.2f ms %5.1f%%\n", static_cast<long>(s.batch),
                static_cast<long>(s.length), static_cast<long>(s.heads), static_cast<long>(s.kv_heads), static_cast<long>(s.head_size),
                forward * 1e3, 100 * forward_share, backward * 1e3, 100 * backward_share);
    if (json.back() != '[') json += ", ";
    json += "{\"batch\": " + std::to_string(s.batch) + ", \"length\": " + std::to_string(s.length) + ", \"heads\": " +
            std::to_string(s.heads) +
            ", \"kv_heads\": " + std::to_string(s.kv_heads) + ", \"head_size\": " + std::to_string(s.head_size) +
            ", \"forward\": " + std::to_string(forward_share) + ", \"backward\": " + std::to_string(backward_share) + "}";
  }
  std::printf("%s]}\n", json.c_str());
  return 0;
}
