// The GPU's memory-bound operations against fp64 references: fresh random values and hostile ones, shapes that fit vectors and shapes that do not,
// aliases that the interface allows. cuda_pointwise_test [seed] [small]: small leaves out what takes long under compute-sanitizer.
// Outputs are NaN before each run; every run is done twice and must give equal bits.
#include <cstdlib>
#include <functional>
#include <memory>

#include "native/device/cuda/pointwise.h"
#include "test/native/cuda/gpu_check.h"

namespace tinyllama {
namespace {

using check::DeviceValues;
using check::Doubles;
using check::expect;
using check::expect_close;
using Bits = std::vector<std::vector<char>>;

struct Bench {
  CudaContext context{0};
  std::mt19937_64 random;
};

struct Limits {
  double relative, absolute;
};
// bf16 outputs: half a unit in the last place is 2^-9; fp32 arithmetic before it may tip a tie.
Limits limits(DataType type) { return type == DataType::f32 ? Limits{3e-6, 3e-6} : Limits{0.00392, 1e-5}; }

std::string named(const char* operation, DataType type, std::int64_t rows, std::int64_t columns) {
  return std::string(operation) + (type == DataType::f32 ? " f32 " : " bf16 ") + std::to_string(rows) + "x" + std::to_string(columns);
}

// `run` sets its memory up anew, runs the operation and returns all outputs' bits.
void expect_repeatable(const std::string& name, const std::function<Bits()>& run) {
  const Bits first = run();
  expect(first == run(), name + ": two runs differ");
}

struct NormCase {
  std::int64_t rows, columns, padding, shift;
};

void test_norm(Bench& bench, DataType type, const NormCase& c, double scale) {
  const std::int64_t stride = c.columns + c.padding, size = c.rows * stride;
  const std::string name = named("rms norm", type, c.rows, c.columns) + " stride " + std::to_string(stride) + " shift " + std::to_string(c.shift);
  Doubles x = check::normals(size, type, bench.random, scale), delta = check::normals(size, type, bench.random, scale);
  const Doubles gain = check::normals(c.columns, DataType::f32, bench.random);
  if (c.rows > 2)  // a row of zeros, and one with a single large value
    for (std::int64_t i = 0; i < c.columns; ++i) x[stride + i] = delta[stride + i] = 0, x[2 * stride + i] = i == 0 ? 1000 : 0;
  const float eps = 1e-5f;
  const auto limit = limits(type);
  DeviceValues gx(x, type, c.shift), gdelta(delta, type, c.shift), gsum(size, type, c.shift), gout(size, type, c.shift), again(size, type, c.shift);
  DeviceValues ggain(gain, DataType::f32, c.shift), rstd(c.rows, DataType::f32);
  auto view = [&](const DeviceValues& values) { return values.view(c.rows, c.columns, stride); };
  auto forward_reference = [&](const Doubles& normalized, Doubles& want, Doubles& want_rstd) {
    for (std::int64_t r = 0; r < c.rows; ++r) {
      double squares = 0;
      for (std::int64_t i = 0; i < c.columns; ++i) squares += normalized[r * stride + i] * normalized[r * stride + i];
      want_rstd[r] = 1 / std::sqrt(squares / static_cast<double>(c.columns) + static_cast<double>(eps));
      for (std::int64_t i = 0; i < c.columns; ++i) want[r * stride + i] = normalized[r * stride + i] * want_rstd[r] * gain[i];
    }
  };
  // Padding between rows must stay poison: compare only the columns.
  auto dense = [&](const Doubles& values) {
    Doubles result;
    for (std::int64_t r = 0; r < c.rows; ++r) result.insert(result.end(), values.begin() + r * stride, values.begin() + r * stride + c.columns);
    return result;
  };
  auto padding_kept = [&](const DeviceValues& values) {
    const Doubles all = values.get();
    for (std::int64_t r = 0; r < c.rows; ++r)
      for (std::int64_t i = c.columns; i < stride; ++i)
        if (!std::isnan(all[r * stride + i])) return false;
    return values.margins_kept();
  };
  for (const bool residual : {true, false}) {
    auto run = [&] {
      gsum.poison(), gout.poison(), rstd.poison(), again.poison();
      cuda::rms_norm_forward(bench.context, view(gout), rstd.f32(), residual ? view(gsum) : Tensor{}, view(gx), residual ? view(gdelta) : Tensor{},
                             ggain.f32(), eps);
      cuda::rms_norm_again(bench.context, view(again), residual ? view(gsum) : view(gx), ggain.f32(), rstd.f32());
      CHECK_CUDA(cudaStreamSynchronize(bench.context.stream()));
      return Bits{gout.raw(), gsum.raw(), rstd.raw(), again.raw()};
    };
    expect_repeatable(name + " forward", run);
    const Bits bits = run();
    expect(bits[0] == bits[3], name + ": again differs from forward");
    if (residual) {
      Doubles want = x;
      for (std::size_t i = 0; i < want.size(); ++i) want[i] += delta[i];
      expect_close(dense(gsum.get()), dense(want), limit.relative, 1e-30, name + " sum");
      expect(padding_kept(gsum), name + " sum: wrote outside");
    }
    Doubles want(size, 0.0), want_rstd(c.rows);
    forward_reference(residual ? gsum.get() : x, want, want_rstd);
    expect_close(dense(gout.get()), dense(want), limit.relative, limit.absolute, name + " out");
    expect_close(rstd.get(), want_rstd, 3e-6, 0, name + " rstd");
    expect(padding_kept(gout), name + " out: wrote outside");
  }
  {  // the sum may be x itself
    const Doubles sum = dense(gsum.get());
    DeviceValues in_place(x, type, c.shift);
    cuda::rms_norm_forward(bench.context, view(gout), rstd.f32(), view(in_place), view(in_place), view(gdelta), ggain.f32(), eps);
    cuda::rms_norm_forward(bench.context, view(again), rstd.f32(), view(gsum), view(gx), view(gdelta), ggain.f32(), eps);
    CHECK_CUDA(cudaStreamSynchronize(bench.context.stream()));
    expect(dense(in_place.get()) == dense(gsum.get()), name + ": sum in place differs");
    expect(dense(gout.get()) == dense(again.get()), name + ": out with the sum in place differs");
  }

  const Doubles dout = check::normals(size, type, bench.random), dx = check::normals(size, type, bench.random),
                dgain = check::normals(c.columns, DataType::f32, bench.random);
  Doubles normed(size), want_rstd(c.rows), want_dx = dx, want_dgain = dgain;
  forward_reference(x, normed, want_rstd);
  rstd.set(want_rstd);
  want_rstd = rstd.get();
  double widest = 0;
  for (std::int64_t r = 0; r < c.rows; ++r) {
    const double s = want_rstd[r];
    double product = 0;
    for (std::int64_t i = r * stride; i < r * stride + c.columns; ++i) product += dout[i] * gain[i - r * stride] * x[i];
    for (std::int64_t i = r * stride; i < r * stride + c.columns; ++i) {
      want_dx[i] += s * gain[i - r * stride] * dout[i] - x[i] * s * s * s * product / static_cast<double>(c.columns);
      want_dgain[i - r * stride] += dout[i] * x[i] * s;
      // The row of zeros has a large rstd, but nothing that cancels.
      if (r != 1) widest = std::max(widest, s * std::abs(gain[i - r * stride] * dout[i]));
    }
  }
  DeviceValues gdout(dout, type, c.shift), gdx(size, type, c.shift), gdgain(c.columns, DataType::f32);
  for (const bool emits : {true, false}) {
    auto run = [&] {
      gdx.set(dx), gdgain.set(dgain), again.poison();
      cuda::rms_norm_backward(bench.context, view(gdx), gdgain.f32(), emits ? view(again) : Tensor{}, view(gdout), view(gx), ggain.f32(), rstd.f32());
      CHECK_CUDA(cudaStreamSynchronize(bench.context.stream()));
      return Bits{gdx.raw(), gdgain.raw(), again.raw()};
    };
    expect_repeatable(name + " backward", run);
    expect_close(dense(gdx.get()), dense(want_dx), limit.relative, 1e-6 * (1 + widest), name + " dx");
    expect_close(gdgain.get(), want_dgain, 3e-6, 1e-6 * std::sqrt(static_cast<double>(c.rows)) * 8, name + " dgain");
    if (emits) {
      expect_close(dense(again.get()), dense(normed), limit.relative, limit.absolute, name + " normed");
      expect(padding_kept(again), name + " normed: wrote outside");
    }
    expect(gdx.margins_kept() && gdgain.margins_kept(), name + " backward: wrote outside");
  }
}

struct RotaryCase {
  AttentionShape shape;
  std::int64_t padding;
};

void test_rotary(Bench& bench, DataType type, const RotaryCase& c) {
  const AttentionShape& s = c.shape;
  const std::int64_t rows = s.batch * s.length, columns = (s.heads + 2 * s.kv_heads) * s.head_size, stride = columns + c.padding, half = s.head_size / 2;
  const std::string name = named("rotary", type, rows, columns) + " head size " + std::to_string(s.head_size);
  const Doubles qkv = check::normals(rows * stride, type, bench.random);
  Doubles cosine(s.length * half), sine(s.length * half);
  for (std::int64_t t = 0; t < s.length; ++t)
    for (std::int64_t i = 0; i < half; ++i) {
      const double angle = static_cast<double>(t) * std::pow(10000.0, -static_cast<double>(i) / static_cast<double>(half));
      cosine[t * half + i] = static_cast<double>(static_cast<float>(std::cos(angle)));
      sine[t * half + i] = static_cast<double>(static_cast<float>(std::sin(angle)));
    }
  DeviceValues gqkv(rows * stride, type), gcosine(cosine, DataType::f32), gsine(sine, DataType::f32);
  for (const bool inverse : {false, true}) {
    expect_repeatable(name, [&] {
      gqkv.set(qkv);
      cuda::rotary(bench.context, gqkv.view(rows, columns, stride), gcosine.f32(), gsine.f32(), s, inverse);
      CHECK_CUDA(cudaStreamSynchronize(bench.context.stream()));
      return Bits{gqkv.raw()};
    });
    Doubles want = qkv;
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t h = 0; h < s.heads + s.kv_heads; ++h)
        for (std::int64_t i = 0; i < half; ++i) {
          const std::int64_t at = r * stride + h * s.head_size + i;
          const double cos = cosine[r % s.length * half + i], sin = sine[r % s.length * half + i] * (inverse ? -1 : 1);
          want[at] = qkv[at] * cos - qkv[at + half] * sin;
          want[at + half] = qkv[at + half] * cos + qkv[at] * sin;
        }
    expect_close(gqkv.get(), want, limits(type).relative, 1e-6, name);
    expect(gqkv.margins_kept(), name + ": wrote outside");
  }
}

void test_swiglu(Bench& bench, DataType type, std::int64_t rows, std::int64_t columns, std::int64_t padding, bool hostile) {
  const std::int64_t stride = 2 * columns + padding, act_stride = columns + padding;
  const std::string name = named("swiglu", type, rows, columns) + (hostile ? " hostile" : "");
  Doubles gate_up = check::normals(rows * stride, type, bench.random, 2.0);
  const Doubles dact = check::normals(rows * act_stride, type, bench.random);
  if (hostile) {
    const double gates[] = {0.0, -0.0, 88.0, -88.0, 100.0, -100.0, 1e30, -1e30, 1e-30, -60.0};
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t i = 0; i < columns; ++i)
        gate_up[r * stride + i] = static_cast<double>(check::rounded(gates[(r + i) % 10], type));
  }
  Doubles act(rows * act_stride, NAN), dgate_up(rows * stride, NAN), dense_act, dense_dgate_up;
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t i = 0; i < columns; ++i) {
      const double g = gate_up[r * stride + i], u = gate_up[r * stride + columns + i], dy = dact[r * act_stride + i];
      const double s = 1 / (1 + std::exp(-g));
      act[r * act_stride + i] = g * s * u;
      dgate_up[r * stride + i] = dy * u * (s + g * s * (1 - s));
      dgate_up[r * stride + columns + i] = dy * g * s;
    }
  auto dense = [&](const Doubles& values, std::int64_t width, std::int64_t step) {
    Doubles result;
    for (std::int64_t r = 0; r < rows; ++r) result.insert(result.end(), values.begin() + r * step, values.begin() + r * step + width);
    return result;
  };
  const auto limit = limits(type);
  DeviceValues in(gate_up, type), out(rows * act_stride, type), gdact(dact, type), gradient(rows * stride, type);
  expect_repeatable(name + " forward", [&] {
    out.poison();
    cuda::swiglu_forward(bench.context, out.view(rows, columns, act_stride), in.view(rows, 2 * columns, stride));
    CHECK_CUDA(cudaStreamSynchronize(bench.context.stream()));
    return Bits{out.raw()};
  });
  expect_close(dense(out.get(), columns, act_stride), dense(act, columns, act_stride), limit.relative, limit.absolute, name + " act");
  expect(out.margins_kept(), name + ": wrote outside");
  struct Aliases {
    bool in_place, gives_act, act_is_dact;
  };
  for (const Aliases& a : {Aliases{false, false, false}, {false, true, false}, {true, true, true}, {true, false, false}, {true, true, false}}) {
    const std::string what = name + " backward" + (a.in_place ? " in place" : "") + (a.gives_act ? a.act_is_dact ? " act in dact" : " with act" : "");
    expect_repeatable(what, [&] {
      in.set(gate_up), gdact.set(dact), gradient.poison(), out.poison();
      const DeviceValues& target = a.in_place ? in : gradient;
      const DeviceValues& activated = a.act_is_dact ? gdact : out;
      cuda::swiglu_backward(bench.context, target.view(rows, 2 * columns, stride), a.gives_act ? activated.view(rows, columns, act_stride) : Tensor{},
                            gdact.view(rows, columns, act_stride), in.view(rows, 2 * columns, stride));
      CHECK_CUDA(cudaStreamSynchronize(bench.context.stream()));
      return Bits{target.raw(), activated.raw()};
    });
    expect_close(dense((a.in_place ? in : gradient).get(), 2 * columns, stride), dense(dgate_up, 2 * columns, stride), limit.relative, limit.absolute,
                 what + " dgate_up");
    if (a.gives_act)
      expect_close(dense((a.act_is_dact ? gdact : out).get(), columns, act_stride), dense(act, columns, act_stride), limit.relative, limit.absolute,
                   what + " act");
  }
}

enum class Ids { random, equal, few, ascending, descending, pairs, groups, long_runs };

void test_embedding(Bench& bench, DataType type, std::int64_t rows, std::int64_t columns, std::int64_t vocabulary, Ids kind, std::int64_t padding) {
  const std::string name = named("embedding", type, rows, columns) + " of " + std::to_string(vocabulary) + " ids kind " + std::to_string(static_cast<int>(kind));
  std::vector<std::int32_t> ids(static_cast<std::size_t>(rows));
  for (std::int64_t r = 0; r < rows; ++r) {
    const std::int64_t any = static_cast<std::int64_t>(bench.random() % static_cast<std::uint64_t>(vocabulary));
    const std::int64_t id = kind == Ids::random    ? any
                            : kind == Ids::equal   ? vocabulary - 1
                            : kind == Ids::few     ? (any % 10 < 7 ? 1 : any % 5)
                            : kind == Ids::ascending ? r * vocabulary / rows
                            : kind == Ids::descending ? vocabulary - 1 - r * vocabulary / rows
                            : kind == Ids::pairs     ? r / 48  // runs of 48: each goes over one or two borders
                            : kind == Ids::groups    ? r / 1024  // runs that end with a group of windows
                                                     : (r + 40) / 1500;  // runs that begin inside one group and end inside the next or the one after
    ids[static_cast<std::size_t>(r)] = static_cast<std::int32_t>(id % vocabulary);
  }
  std::int32_t* gids = nullptr;
  CHECK_CUDA(cudaMalloc(&gids, ids.size() * 4));
  CHECK_CUDA(cudaMemcpy(gids, ids.data(), ids.size() * 4, cudaMemcpyHostToDevice));
  CHECK_CUDA(cudaDeviceSynchronize());
  const std::int64_t stride = columns + padding;
  const Doubles table = check::normals(vocabulary * stride, type, bench.random), dout = check::normals(rows * stride, type, bench.random);
  DeviceValues gtable(table, type), out(rows * stride, type), gdout(dout, type);
  expect_repeatable(name + " forward", [&] {
    out.poison();
    cuda::embedding_forward(bench.context, out.view(rows, columns, stride), gtable.view(vocabulary, columns, stride), gids);
    CHECK_CUDA(cudaStreamSynchronize(bench.context.stream()));
    return Bits{out.raw()};
  });
  const Doubles got = out.get();
  bool equal = true;
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t i = 0; i < columns; ++i) equal = equal && got[r * stride + i] == table[ids[r] * stride + i];
  expect(equal && out.margins_kept(), name + " forward: not the table's rows");

  const Doubles dtable = check::normals(vocabulary * stride, DataType::f32, bench.random);
  Doubles want = dtable;
  std::vector<std::int64_t> uses(static_cast<std::size_t>(vocabulary));
  for (std::int64_t r = 0; r < rows; ++r) {
    ++uses[ids[r]];
    for (std::int64_t i = 0; i < columns; ++i) want[ids[r] * stride + i] += dout[r * stride + i];
  }
  DeviceValues gradient(vocabulary * stride, DataType::f32);
  expect_repeatable(name + " backward", [&] {
    gradient.set(dtable);
    cuda::embedding_backward(bench.context, gradient.view(vocabulary, columns, stride), gdout.view(rows, columns, stride), gids);
    CHECK_CUDA(cudaStreamSynchronize(bench.context.stream()));
    return Bits{gradient.raw()};
  });
  const double most = static_cast<double>(*std::max_element(uses.begin(), uses.end()));
  expect_close(gradient.get(), want, 1e-6, 1e-6 * (1 + std::sqrt(most) * 4), name + " dtable");
  expect(gradient.margins_kept(), name + " backward: wrote outside");
  CHECK_CUDA(cudaFree(gids));
}

void test_flat(Bench& bench, std::int64_t count, std::int64_t shift) {
  const std::string name = "flat " + std::to_string(count) + " shift " + std::to_string(shift);
  const Doubles a = check::normals(count, DataType::f32, bench.random);
  Doubles b = check::normals(count, DataType::f32, bench.random, 1e-3);
  for (std::int64_t i = 0; i + 8 < count; i += 97)  // ties, zeros, large and tiny values
    b[i] = 1.00390625, b[i + 1] = 1.01171875, b[i + 2] = 0, b[i + 3] = -3e38, b[i + 4] = static_cast<double>(1e-40f), b[i + 5] = 1e15;
  for (double& value : b) value = static_cast<double>(static_cast<float>(value));
  DeviceValues ga(count, DataType::f32, shift), gb(b, DataType::f32, shift), rounded(count, DataType::bf16, shift);
  ga.set(a);
  cuda::add(bench.context, ga.f32(), gb.f32(), count);
  cuda::round_weights(bench.context, rounded.data(), gb.f32(), count);
  CHECK_CUDA(cudaStreamSynchronize(bench.context.stream()));
  Doubles sum = a, halves = b;
  for (std::size_t i = 0; i < sum.size(); ++i) {
    sum[i] = static_cast<double>(static_cast<float>(a[i]) + static_cast<float>(b[i]));
    halves[i] = static_cast<double>(check::rounded(b[i], DataType::bf16));
  }
  expect(ga.get() == sum && ga.margins_kept(), name + ": add");
  expect(rounded.get() == halves && rounded.margins_kept(), name + ": round_weights");

  const Doubles c = check::normals(count, DataType::f32, bench.random);
  DeviceValues gc(c, DataType::f32, shift);
  long double want = 0;
  for (const double value : c) want += static_cast<long double>(value) * static_cast<long double>(value);
  const auto norm_of = [&] {
    DeviceValues sums(2 * ((count + 4095) / 4096) + 2, DataType::f32);
    auto* blocks = reinterpret_cast<double*>((reinterpret_cast<std::uintptr_t>(sums.f32()) + 7) / 8 * 8);
    cuda::squared_norm(bench.context, blocks, gc.f32(), count);
    CHECK_CUDA(cudaStreamSynchronize(bench.context.stream()));
    std::vector<double> host(static_cast<std::size_t>((count + 4095) / 4096));
    CHECK_CUDA(cudaMemcpy(host.data(), blocks, host.size() * sizeof(double), cudaMemcpyDeviceToHost));
    double total = 0;
    for (const double sum : host) total += sum;
    return total;
  };
  const double norm = norm_of();
  expect(std::abs(norm - static_cast<double>(want)) <= 1e-12 * static_cast<double>(want), name + ": squared_norm");
  expect(norm == norm_of(), name + ": squared_norm differs between runs");
}

void test_adamw(Bench& bench, std::int64_t count, std::int64_t shift, std::int64_t rounded_shift, bool rounds, std::int64_t step) {
  const std::string name = "adamw " + std::to_string(count) + " shift " + std::to_string(shift) + "/" + std::to_string(rounded_shift) + " step " +
                           std::to_string(step) + (rounds ? "" : " without rounded");
  const Doubles w = check::normals(count, DataType::f32, bench.random, 0.02), m = check::normals(count, DataType::f32, bench.random, 1e-3);
  Doubles v = check::normals(count, DataType::f32, bench.random, 1e-3), g = check::normals(count, DataType::f32, bench.random, 1e-2);
  for (double& value : v) value = static_cast<double>(static_cast<float>(value * value));
  for (std::int64_t i = 0; i + 3 < count; i += 53) {
    g[i] = 0, v[i] = 0;
    g[i + 1] = static_cast<double>(1e-12f);
    g[i + 2] = static_cast<double>(1e4f);
  }
  const AdamWArguments arguments{4e-4f, 0.9f, 0.95f, 1e-8f, 0.1f, step, 0.37f};
  auto d = [](float value) { return static_cast<double>(value); };
  Doubles want_w(count), want_m(count), want_v(count);
  for (std::int64_t i = 0; i < count; ++i) {
    const double gradient = g[i] * d(arguments.gradient_scale);
    want_m[i] = d(0.9f) * m[i] + d(1.f - 0.9f) * gradient;
    want_v[i] = d(0.95f) * v[i] + d(1.f - 0.95f) * gradient * gradient;
    const double m_hat = want_m[i] / (1 - std::pow(d(0.9f), static_cast<double>(step)));
    const double v_hat = want_v[i] / (1 - std::pow(d(0.95f), static_cast<double>(step)));
    want_w[i] = w[i] * (1 - d(4e-4f) * d(0.1f)) - d(4e-4f) * m_hat / (std::sqrt(v_hat) + d(1e-8f));
  }
  DeviceValues gw(count, DataType::f32, shift), gm(count, DataType::f32, shift), gv(count, DataType::f32, shift), gg(count, DataType::f32, shift),
      rounded(count, DataType::bf16, rounded_shift);
  expect_repeatable(name, [&] {
    gw.set(w), gm.set(m), gv.set(v), gg.set(g), rounded.poison();
    cuda::adamw(bench.context, gw.f32(), rounds ? rounded.data() : nullptr, gm.f32(), gv.f32(), gg.f32(), count, arguments);
    CHECK_CUDA(cudaStreamSynchronize(bench.context.stream()));
    return Bits{gw.raw(), gm.raw(), gv.raw(), gg.raw(), rounded.raw()};
  });
  expect_close(gm.get(), want_m, 1e-6, 1e-9, name + " first moment");
  expect_close(gv.get(), want_v, 1e-6, 1e-30, name + " second moment");
  expect_close(gw.get(), want_w, 1e-6, 1e-8, name + " weights");
  expect(gg.get() == Doubles(static_cast<std::size_t>(count), 0.0), name + ": gradients are not zero");
  expect(gw.margins_kept() && gm.margins_kept() && gv.margins_kept() && gg.margins_kept() && rounded.margins_kept(), name + ": wrote outside");
  if (!rounds) return;
  Doubles halves = gw.get();
  for (double& value : halves) value = static_cast<double>(check::rounded(value, DataType::bf16));
  expect(rounded.get() == halves, name + ": rounded is not the weights rounded");
}

void run(std::uint64_t seed, bool small) {
  const std::int64_t largest = small ? 50000 : INT64_MAX;
  Bench bench;
  bench.random.seed(seed);
  std::printf("%s, seed %llu\n", bench.context.properties().name, static_cast<unsigned long long>(seed));
  for (const DataType type : {DataType::f32, DataType::bf16}) {
    // Up to width 4096 more rows than blocks stay on an H200, so that blocks go on to a second row.
    for (const NormCase& c : {NormCase{1, 1, 0, 0}, {3, 31, 0, 0}, {9, 64, 0, 0}, {5000, 256, 0, 0}, {7, 104, 24, 0}, {5, 2048, 0, 1}, {2000, 2048, 0, 0},
                              {2000, 1024, 8, 0}, {450, 4096, 0, 0}, {9, 8192, 0, 0}, {6, 8191, 1, 0}, {3, 70000, 0, 0}, {1100, 17, 3, 0}})
      for (const double scale : {1.0, 30.0})
        if (c.rows * c.columns <= largest) test_norm(bench, type, c, scale);
    for (const RotaryCase& c : {RotaryCase{{2, 37, 32, 4, 64}, 0}, {{3, 5, 3, 1, 10}, 0}, {{1, 64, 7, 1, 128}, 16}, {{2, 9, 2, 2, 2}, 3}, {{1, 3, 64, 64, 32}, 0}})
      test_rotary(bench, type, c);
    if (!small) test_swiglu(bench, type, 65, 5632, 0, false);
    test_swiglu(bench, type, 33, 100, 0, false);
    test_swiglu(bench, type, 7, 96, 8, true);
    test_swiglu(bench, type, 1, 1, 0, false);
    test_swiglu(bench, type, 31, 77, 5, true);
    for (const Ids kind : {Ids::random, Ids::equal, Ids::few, Ids::ascending, Ids::descending, Ids::pairs, Ids::groups, Ids::long_runs}) {
      test_embedding(bench, type, small ? 300 : 4099, 128, 1000, kind, 0);
      test_embedding(bench, type, 100, 33, 7, kind, 2);
    }
    if (!small) {
      test_embedding(bench, type, 5000, 8, 100000, Ids::random, 0);
      test_embedding(bench, type, 40000, 8, 140000, Ids::random, 0);  // a cluster's second capacity, three digits
      test_embedding(bench, type, 70000, 8, 3, Ids::equal, 0);        // more groups than a warp looks at; more rows than a cluster sorts
      test_embedding(bench, type, 140000, 8, 50000, Ids::random, 0);  // more tiles of the sort than its blocks add up for themselves
      test_embedding(bench, type, 1024, 16, 9, Ids::equal, 0);
      test_embedding(bench, type, 1056, 16, 9, Ids::equal, 0);
    }
    test_embedding(bench, type, 1, 8, 1, Ids::equal, 0);
    test_embedding(bench, type, 64, 2048, 300, Ids::random, 0);
    test_embedding(bench, type, 3000, 24, 40000, Ids::few, 8);
  }
  for (const std::int64_t count : {0, 1, 3, 4, 1000, 32768, 32769, 1000003})
    for (const std::int64_t shift : {0, 1})
      if (count <= largest) test_flat(bench, count, shift);
  for (const std::int64_t count : {1, 5, 4096, 300007}) {
    if (count > largest) continue;
    test_adamw(bench, count, 0, 0, true, 1);
    test_adamw(bench, count, 1, 1, true, 1000);
    test_adamw(bench, count, 0, 1, true, 7);
    test_adamw(bench, count, 0, 0, false, 100000);
  }
  CHECK_CUDA(cudaDeviceSynchronize());
}

}  // namespace
}  // namespace tinyllama

int main(int count, char** arguments) {
  try {
    tinyllama::run(count > 1 ? std::strtoull(arguments[1], nullptr, 10) : std::random_device{}(), count > 2);
  } catch (const std::exception& error) {
    std::printf("FAILED: %s\n", error.what());
    return 1;
  }
  return tinyllama::check::report("cuda pointwise");
}
