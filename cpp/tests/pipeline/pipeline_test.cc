// Tests the pipeline with networks that record their calls: order, early stops, and memory pooling.
#include "pipeline/pipeline.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/adaptive_avg_pool2d.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/upsample_nearest2d.h>
#include <c10/core/CPUAllocator.h>

#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "pipeline/noise.h"
#include "support.h"
#include "support/mmap_pool.h"

namespace {

using namespace diad;

constexpr int64_t kMiB = 1 << 20;
constexpr uint32_t kSize = 32;

Manifest small_manifest() {
  Manifest m;
  m.image_size = kSize;
  m.mean = {0.5F, 0.5F, 0.5F};
  m.std = {0.5F, 0.5F, 0.5F};
  m.latent_channels = 3;
  m.latent_size = 4;
  m.latent_scale = 0.5;
  m.logvar_min = -30;
  m.logvar_max = 20;
  m.sqrt_alpha_bar_noise = 0.25F;
  m.sqrt_one_minus_alpha_bar_noise = 0.5F;
  m.steps = {{901, 0.1F, 0.5F}, {501, 0.5F, 0.9F}};
  m.map_sigma = 1;
  m.map_truncate = 4;
  m.pool_size = 4;
  m.pool_count = 2;
  return m;
}

struct Call {
  std::string network;
  bool pooled;      // results are allocated from the pool
  int64_t waiting;  // free bytes in the pool at the start
};

// Networks of a few operators. Each one frees a 2 MiB tensor.
class Noting final : public Networks {
 public:
  explicit Noting(std::vector<Call>& calls) : calls_(calls) {}

  at::Tensor encode(const at::Tensor& x) override {
    note("encode");
    const at::Tensor mean = at::adaptive_avg_pool2d(x, {4, 4});
    return misshapen == "encoder" ? mean : at::cat({mean, mean - 3}, 1);
  }
  at::Tensor guide(const at::Tensor& x) override {
    note("guide");
    return at::adaptive_avg_pool2d(x, {4, 4});
  }
  at::Tensor denoise(const at::Tensor& z, const at::Tensor& hint, int64_t step) override {
    note("denoise " + std::to_string(step));
    return misshapen == "denoiser" ? z.narrow(1, 0, 1) : z * 0.5 - hint * 0.25;
  }
  at::Tensor decode(const at::Tensor& z) override {
    note("decode");
    return at::upsample_nearest2d(z, {kSize, misshapen == "decoder" ? kSize / 2 : kSize}).tanh();
  }
  Features extract(const at::Tensor& x) override {
    note("extract");
    return {at::adaptive_avg_pool2d(x, {8, 8}), at::adaptive_avg_pool2d(x, {4, 4}),
            at::adaptive_avg_pool2d(x, {2, 2})};
  }

  std::string failing, misshapen;

 private:
  void note(const std::string& network) {
    calls_.push_back(
        {network, pooled_allocator() != c10::GetCPUAllocator(), static_cast<int64_t>(pool_bytes().waiting)});
    static_cast<void>(pooled_empty({2 * kMiB}, at::kByte));
    if (network == failing) throw std::runtime_error(network + " failed");
  }

  std::vector<Call>& calls_;
};

Frame frame_of(uint8_t first) {
  Frame frame{std::vector<uint8_t>(kSize * kSize * 3), kSize, kSize, 3};
  for (size_t i = 0; i < frame.pixels.size(); ++i) frame.pixels[i] = static_cast<uint8_t>(first + 7 * i);
  return frame;
}

struct Run {
  std::vector<Call> calls;
  std::vector<ImageResult> results;
  std::string error;
};

constexpr Wanted kEverything{.map = true, .reconstruction = true, .stages = true};

Run run(bool use_pool, const std::vector<ImageRequest>& batch, const StepCallback& on_step,
        const std::string& failing = "", const Manifest& manifest = small_manifest()) {
  trim_pool();
  Run result;
  auto networks = std::make_unique<Noting>(result.calls);
  networks->failing = failing;
  Pipeline pipeline(manifest, std::move(networks), c10::kCPU, at::kFloat, use_pool);
  try {
    result.results = pipeline.run(batch, on_step);
  } catch (const std::runtime_error& error) {
    result.error = error.what();
  }
  return result;
}

bool always(int64_t /*done*/, int64_t /*total*/) { return true; }

std::vector<std::string> names(const std::vector<Call>& calls) {
  std::vector<std::string> result;
  for (const Call& call : calls) result.push_back(call.network);
  return result;
}

std::vector<float> values_of(const Run& run, const std::string& stage) {
  for (const Stage& found : run.results.at(0).stages) {
    if (found.name == stage) return found.values;
  }
  return {};
}

}  // namespace

TEST_CASE("pipeline: runs each network once per batch and the denoiser once per step") {
  const Frame frame = frame_of(1);
  const Run one = run(false, {{&frame, 1, kEverything}}, always),
            two = run(false, {{&frame, 1, {}}, {&frame, 2, {}}}, always);
  const std::vector<std::string> expected{"encode", "guide", "denoise 0", "denoise 1", "decode", "extract"};
  CHECK(names(one.calls) == expected);
  CHECK(names(two.calls) == expected);
}

TEST_CASE("pipeline: x_T is signal * z + spread * noise, and exactly signal * z for spread 0") {
  const Frame frame = frame_of(1);
  Manifest manifest = small_manifest();
  const auto start_of = [&](uint64_t seed) {
    const Run done = run(false, {{&frame, seed, kEverything}}, always, "", manifest);
    const std::vector<float> z = values_of(done, "z"), start = values_of(done, "x_T");
    const at::Tensor noise = draw_noise(seed, manifest).forward;
    REQUIRE(z.size() == 48);
    for (size_t i = 0; i < z.size(); ++i) {
      const float signal = 0.25F * z[i];
      if (manifest.sqrt_one_minus_alpha_bar_noise == 0) CHECK(start[i] == signal);
      else CHECK(start[i] == doctest::Approx(signal + 0.5F * noise.const_data_ptr<float>()[i]).epsilon(1e-6));
    }
  };
  start_of(1);
  manifest.sqrt_one_minus_alpha_bar_noise = 0;
  start_of(1);
  start_of(2);
}

TEST_CASE("pipeline: a single-step bundle calls the denoiser once with the manifest's noise levels") {
  const Frame frame = frame_of(1);
  Manifest manifest = small_manifest();
  manifest.sqrt_one_minus_alpha_bar_noise = 0;
  manifest.steps = {{401, 0.25F, 1.0F}};
  std::vector<std::pair<int64_t, int64_t>> told;
  const Run done = run(
      false, {{&frame, 1, kEverything}},
      [&](int64_t step, int64_t total) {
        told.emplace_back(step, total);
        return true;
      },
      "", manifest);
  CHECK(names(done.calls) == std::vector<std::string>{"encode", "guide", "denoise 0", "decode", "extract"});
  CHECK(told == std::vector<std::pair<int64_t, int64_t>>{{1, 1}});
  // With alphaBarPrev 1 the result is the predicted latent: (x - sqrt(0.75) eps) / sqrt(0.25).
  const std::vector<float> start = values_of(done, "x_T"), end = values_of(done, "step_x"),
                           moments = values_of(done, "moments");
  REQUIRE(end.size() == start.size());
  for (size_t i = 0; i < end.size(); ++i) {
    const double eps = 0.5 * start[i] - 0.25 * moments[i];  // the encoder's mean is the hint
    CHECK(end[i] == doctest::Approx((start[i] - std::sqrt(0.75) * eps) / 0.5).epsilon(1e-5));
  }
}

TEST_CASE("pipeline: residual decoding adds the decoded latent difference to the input") {
  const Frame frame = frame_of(1);
  Manifest manifest = small_manifest();
  manifest.residual_decoding = true;
  const Run residual = run(false, {{&frame, 1, kEverything}}, always, "", manifest);
  CHECK(names(residual.calls) ==
        std::vector<std::string>{"encode", "guide", "denoise 0", "denoise 1", "decode", "decode", "extract"});
  const std::vector<float> x = values_of(residual, "x"), z = values_of(residual, "z"),
                           steps = values_of(residual, "step_x");
  const std::vector<float> reconstruction = values_of(residual, "reconstruction");
  for (size_t channel = 0; channel < 3; ++channel) {
    for (size_t pixel = 0; pixel < kSize * kSize; ++pixel) {
      const size_t cell = channel * 16 + pixel / kSize / 8 * 4 + pixel % kSize / 8,
                   at = channel * kSize * kSize + pixel;
      const float change = std::tanh(steps[48 + cell] / 0.5F) - std::tanh(z[cell] / 0.5F);
      CHECK(reconstruction[at] == doctest::Approx(x[at] + change).epsilon(1e-5));
    }
  }
}

TEST_CASE("pipeline: an image gets its requested outputs, independent of the rest of the batch") {
  const Frame first = frame_of(1), second = frame_of(90);
  const ImageRequest alone{&first, 5, kEverything},
      other{&second, 6, {.map = false, .reconstruction = false, .stages = false}};
  const std::vector<ImageResult> single = run(false, {alone}, always).results,
                                 both = run(false, {other, alone}, always).results;
  REQUIRE(single.size() == 1);
  REQUIRE(both.size() == 2);
  CHECK(both[1].score == doctest::Approx(single[0].score).epsilon(1e-6));
  CHECK(both[1].reconstruction == single[0].reconstruction);
  CHECK(single[0].map.size() == kSize * kSize);
  CHECK(single[0].stages.size() == 12);
  CHECK(both[0].map.empty());
  CHECK(both[0].reconstruction.empty());
  CHECK(both[0].stages.empty());
  CHECK(both[0].score != both[1].score);
  CHECK(both[0].batch_size == 2);
}

TEST_CASE("pipeline: stops after a step whose callback returns false, without results") {
  const Frame frame = frame_of(1);
  std::vector<std::pair<int64_t, int64_t>> told;
  const Run stopped = run(true, {{&frame, 1, {}}}, [&](int64_t done, int64_t total) {
    told.emplace_back(done, total);
    return done < 1;
  });
  CHECK(told == std::vector<std::pair<int64_t, int64_t>>{{1, 2}});
  CHECK(names(stopped.calls) == std::vector<std::string>{"encode", "guide", "denoise 0"});
  CHECK(stopped.results.empty());
  CHECK(pool_bytes().waiting == 0);
}

TEST_CASE("pipeline: rejects network results whose size differs from the manifest") {
  const Frame frame = frame_of(1);
  for (const std::string network : {"encoder", "denoiser", "decoder"}) {
    std::vector<Call> calls;
    auto networks = std::make_unique<Noting>(calls);
    networks->misshapen = network;
    Pipeline pipeline(small_manifest(), std::move(networks), c10::kCPU, at::kFloat);
    const std::vector<ImageRequest> batch{{&frame, 1, {}}};
    CHECK(contains(error_of([&] { (void)pipeline.run(batch, always); }),
                   "ERR_DIAD_BUNDLE_INVALID: " + network + ".pt: Expected a result of [1, "));
  }
}

#ifndef _WIN32

TEST_CASE("pipeline: the pool serves all networks, is empty afterwards and does not change results") {
  const Frame frame = frame_of(1);
  const std::vector<ImageRequest> batch{{&frame, 1, kEverything}};
  const Run plain = run(false, batch, always), use_pool = run(true, batch, always);
  for (const Call& call : plain.calls) {
    CAPTURE(call.network);
    CHECK(!call.pooled);
  }
  for (const Call& call : use_pool.calls) {
    CAPTURE(call.network);
    CHECK(call.pooled);
    CHECK(call.waiting == (&call == &use_pool.calls.front() ? 0 : 2 * kMiB));  // freed by earlier networks
  }
  CHECK(pool_bytes().waiting == 0);
  REQUIRE(use_pool.results.size() == 1);
  CHECK(use_pool.results[0].score == plain.results[0].score);
  CHECK(use_pool.results[0].map == plain.results[0].map);
}

TEST_CASE("pipeline: a failing network leaves the pool empty") {
  const Frame frame = frame_of(1);
  for (const char* network : {"encode", "denoise 1", "extract"}) {
    const Run failed = run(true, {{&frame, 1, {}}}, always, network);
    CHECK(failed.error == std::string(network) + " failed");
    CHECK(failed.calls.back().network == network);
    CHECK(pool_bytes().waiting == 0);
    CHECK(pooled_allocator() == c10::GetCPUAllocator());
  }
}

#endif
