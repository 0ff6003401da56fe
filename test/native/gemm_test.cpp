// Device::matmul against a product in double precision: every transpose case, odd sizes, strides, both ways of writing.
#include "native/core/error.h"
#include "test/native/device_check.h"

using namespace tinyllama;
using namespace tinyllama::check;

namespace {

struct Case {
  std::int64_t m, n, k;
};

void check_product(const Case& size, bool transpose_a, bool transpose_b, bool accumulate, std::int64_t padding) {
  const auto [m, n, k] = size;
  const std::int64_t a_rows = transpose_a ? k : m, a_columns = transpose_a ? m : k;
  const std::int64_t b_rows = transpose_b ? n : k, b_columns = transpose_b ? k : n;
  const std::int64_t a_stride = a_columns + padding, b_stride = b_columns + padding, out_stride = n + padding;
  std::vector<float> a = values(a_rows * a_stride, 1), b = values(b_rows * b_stride, 2);
  const std::vector<float> before = values(m * out_stride, 3);
  std::vector<double> want(before.begin(), before.end());
  for (std::int64_t i = 0; i < m; ++i) {
    for (std::int64_t j = 0; j < n; ++j) {
      double sum = accumulate ? static_cast<double>(before[static_cast<std::size_t>(i * out_stride + j)]) : 0.0;
      for (std::int64_t l = 0; l < k; ++l) {
        const auto left = static_cast<std::size_t>(transpose_a ? l * a_stride + i : i * a_stride + l);
        const auto right = static_cast<std::size_t>(transpose_b ? j * b_stride + l : l * b_stride + j);
        sum += static_cast<double>(a[left]) * static_cast<double>(b[right]);
      }
      want[static_cast<std::size_t>(i * out_stride + j)] = sum;
    }
  }
  const std::string name = "matmul " + std::to_string(m) + "x" + std::to_string(n) + "x" + std::to_string(k) + (transpose_a ? " t" : " n") +
                           (transpose_b ? "t" : "n") + (accumulate ? " accumulate" : "") + (padding ? " strided" : "");
  on_every_device(
      name,
      [&](Device& device) {
        std::vector<float> out = before;
        device.matmul(view(out, m, n, out_stride), view(a, a_rows, a_columns, a_stride), transpose_a ? Transpose::yes : Transpose::no,
                      view(b, b_rows, b_columns, b_stride), transpose_b ? Transpose::yes : Transpose::no, accumulate);
        return Outputs{out};
      },
      // Padding included: what lies between the rows must stay as it was.
      [&](const Outputs& outputs, const std::string& what) { expect_near(outputs[0], want, 3e-6, what); });
}

void check_wrong_shapes() {
  std::vector<float> memory(64);
  try {
    make_cpu_device(1)->matmul(view(memory, 2, 3), view(memory, 2, 4), Transpose::no, view(memory, 5, 3), Transpose::no, false);
    expect(false, "matmul of shapes that do not fit must throw");
  } catch (const Error& error) {
    expect(std::string(error.what()).find("(2, 4) · (5, 3)") != std::string::npos, std::string("shapes in the message: ") + error.what());
  }
}

}  // namespace

int main() {
  for (const Case& size : {Case{1, 1, 1}, Case{1, 33, 5}, Case{31, 1, 7}, Case{5, 16, 257}, Case{6, 16, 8}, Case{13, 47, 64},
                           Case{97, 65, 259}, Case{257, 31, 33}, Case{33, 257, 31}, Case{200, 400, 3}, Case{3, 2, 700}}) {
    for (const bool transpose_a : {false, true}) {
      for (const bool transpose_b : {false, true}) {
        for (const bool accumulate : {false, true}) {
          check_product(size, transpose_a, transpose_b, accumulate, 0);
          check_product(size, transpose_a, transpose_b, accumulate, 3);
        }
      }
    }
  }
  // Long sums, and a right operand packed in several slabs.
  check_product({20, 1700, 6000}, false, true, false, 0);
  check_product({20, 1700, 6000}, true, false, true, 0);
  // Few outputs: cut along the depth.
  for (const bool transpose_b : {false, true}) {
    for (const bool transpose_a : {false, true}) {
      check_product({130, 47, 2050}, transpose_a, transpose_b, true, 0);
      check_product({7, 100, 1100}, transpose_a, transpose_b, false, 3);
    }
  }
  check_wrong_shapes();
  return report("gemm_test");
}
