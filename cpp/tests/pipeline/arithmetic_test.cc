// Tests frames, noise, DDIM, anomaly map and score against Pillow, torch and SciPy (fixtures) and by hand.
#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <cstring>

#include "../engine/cli/netpbm.h"
#include "evidence/anomaly_map.h"
#include "pipeline/ddim.h"
#include "pipeline/noise.h"
#include "pipeline/preprocess.h"
#include "support.h"
#include "support/thread_pool.h"

namespace {

diad::Manifest small_manifest() {
  diad::Manifest m;
  m.image_size = 24;
  m.latent_channels = 4;
  m.latent_size = 8;
  m.latent_scale = 0.5;
  m.logvar_min = -30;
  m.logvar_max = 20;
  m.sqrt_alpha_bar_noise = 0.6F;
  m.sqrt_one_minus_alpha_bar_noise = 0.8F;
  m.mean = {0.5F, 0.25F, 0.0F};
  m.std = {0.5F, 0.25F, 1.0F};
  m.map_sigma = 2;
  m.map_truncate = 4;
  m.pool_size = 2;
  m.pool_count = 2;
  return m;
}

diad::NetpbmImage fixture(const std::string& name) {
  return diad::read_netpbm(std::string(DIAD_FIXTURES) + "/" + name + ".ppm");
}

double largest_difference(const at::Tensor& a, const at::Tensor& b) {
  return (a - b).abs().max().item<double>();
}

}  // namespace

TEST_CASE("resize is bit-exact with Pillow") {
  const std::pair<const char*, uint32_t> cases[] = {
      {"resize-50x37", 16}, {"resize-9x5", 24},   {"resize-100x7", 32}, {"resize-1x1", 8},
      {"resize-16x40", 16}, {"resize-33x16", 16}, {"resize-14x60", 16}};
  for (const auto& [name, side] : cases) {
    CAPTURE(name);
    const diad::NetpbmImage source = fixture(name);
    const diad::NetpbmImage expected = fixture(std::string(name) + "-to-" + std::to_string(side));
    CHECK(diad::resize_rgb(source.pixels, source.width, source.height, side) == expected.pixels);
  }
}

TEST_CASE("resizing a large image with worker threads gives the same bytes") {
  std::vector<uint8_t> pixels(static_cast<size_t>(1301) * 977 * 3);
  for (size_t i = 0; i < pixels.size(); ++i) pixels[i] = static_cast<uint8_t>(i * i % 251);
  const diad::Frame frame{pixels, 1301, 977, 3};
  const std::vector<uint8_t> alone = diad::resize_frame(frame, 256);
  CHECK(alone == diad::resize_rgb(pixels, 1301, 977, 256));
  diad::ThreadPool pool(3);
  const diad::ThreadPoolScope sharing(pool);
  for (int i = 0; i < 20; ++i) CHECK(diad::resize_frame(frame, 256) == alone);
}

TEST_CASE("channels: replicates gray and drops alpha") {
  CHECK(diad::resize_frame({{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, 2, 2, 3}, 2) ==
        std::vector<uint8_t>{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12});
  CHECK(diad::to_rgb({{7, 9}, 2, 1, 1}) == std::vector<uint8_t>{7, 7, 7, 9, 9, 9});
  CHECK(diad::to_rgb({{1, 2, 3, 0, 4, 5, 6, 255}, 2, 1, 4}) == std::vector<uint8_t>{1, 2, 3, 4, 5, 6});
}

TEST_CASE("normalization round trip") {
  diad::Manifest m = small_manifest();
  m.image_size = 1;
  const std::vector<uint8_t> rgb{255, 0, 51};
  const at::Tensor x = diad::normalized(rgb, m);
  CHECK(x.sizes() == at::IntArrayRef({1, 3, 1, 1}));
  const auto* values = x.const_data_ptr<float>();
  CHECK(values[0] == doctest::Approx(1.0));
  CHECK(values[1] == doctest::Approx(-1.0));
  CHECK(values[2] == doctest::Approx(0.2));
  CHECK(diad::denormalized(x[0], m) == rgb);
  CHECK(diad::denormalized(at::full({3, 1, 1}, 7.0F), m) == std::vector<uint8_t>{255, 255, 255});
}

TEST_CASE("normalizing a batch of tensors is bit-exact with normalizing single images") {
  diad::Manifest m = small_manifest();
  m.image_size = 16;
  m.mean = {0.485F, 0.456F, 0.406F};
  m.std = {0.229F, 0.224F, 0.225F};
  std::vector<uint8_t> rgb(2 * 16 * 16 * 3);
  for (size_t i = 0; i < rgb.size(); ++i)
    rgb[i] = static_cast<uint8_t>(i / 3 + i % 3);  // every level in every channel
  const at::Tensor together = diad::normalized(at::from_blob(rgb.data(), {2, 16, 16, 3}, at::kByte), m);
  CHECK(together.is_contiguous());
  for (const size_t image : {0, 1}) {
    const std::span<const uint8_t> own(&rgb[image * 16 * 16 * 3], 16 * 16 * 3);
    CHECK(together.narrow(0, static_cast<int64_t>(image), 1).equal(diad::normalized(own, m)));
  }
}

TEST_CASE("noise equals torch's for the same seed") {
  for (const uint64_t seed : {uint64_t{0}, uint64_t{7}, (uint64_t{1} << 63) + 5}) {
    CAPTURE(seed);
    const std::vector<float> expected = read_numbers<float>("noise-" + std::to_string(seed) + ".f32");
    const diad::Noise noise = diad::draw_noise(seed, small_manifest());
    REQUIRE(expected.size() == 512);
    CHECK(std::memcmp(noise.posterior.const_data_ptr<float>(), expected.data(), 256 * sizeof(float)) == 0);
    CHECK(std::memcmp(noise.forward.const_data_ptr<float>(), expected.data() + 256, 256 * sizeof(float)) ==
          0);
  }
}

TEST_CASE("posterior sample applies scale, standard deviation and clamped log variance") {
  const at::Tensor moments =
      at::cat({at::full({1, 4, 1, 1}, 3.0F), at::full({1, 4, 1, 1}, std::log(4.0F))}, 1);
  const at::Tensor noise = at::full({1, 4, 1, 1}, 0.25F);
  CHECK(diad::sample_posterior(moments, noise, small_manifest()).max().item<double>() ==
        doctest::Approx(0.5 * (3 + 2 * 0.25)));
  const at::Tensor wild = at::cat({at::zeros({1, 4, 1, 1}), at::full({1, 4, 1, 1}, 1000.0F)}, 1);
  CHECK(diad::sample_posterior(wild, noise, small_manifest()).max().item<double>() ==
        doctest::Approx(0.5 * 0.25 * std::exp(10.0)));
}

TEST_CASE("DDIM step matches the formula") {
  const at::Tensor x = at::full({1, 4, 1, 1}, 1.0F), eps = at::full({1, 4, 1, 1}, 0.5F);
  const double predicted = (1 - std::sqrt(0.75) * 0.5) / 0.5;
  CHECK(diad::ddim_update(x, eps, {1, 0.25F, 0.64F}).max().item<double>() ==
        doctest::Approx(0.8 * predicted + 0.6 * 0.5).epsilon(1e-6));
}

TEST_CASE("Gaussian blur equals SciPy's") {
  std::vector<double> source = read_numbers<double>("gaussian-in.f64"),
                      target = read_numbers<double>("gaussian-out.f64");
  const at::Tensor maps = at::from_blob(source.data(), {2, 24, 24}, at::kDouble),
                   expected = at::from_blob(target.data(), {2, 24, 24}, at::kDouble);
  CHECK(largest_difference(diad::gaussian_blur(maps, 2.5, 4.0), expected) < 1e-14);
}

TEST_CASE("Gaussian blur reflects repeatedly if it is wider than the map") {
  const at::Tensor flat = at::ones({1, 5, 5}, at::kDouble);
  CHECK(largest_difference(diad::gaussian_blur(flat, 4.0, 4.0), flat) < 1e-12);
}

TEST_CASE("score is the maximum after repeated pools") {
  at::Tensor maps = at::zeros({2, 6, 6}, at::kDouble);
  maps[0].slice(0, 2, 4).slice(1, 2, 4).fill_(1);
  maps[1].fill_(0.25);
  const at::Tensor scores = diad::pooled_maximum(maps, 2, 2);
  CHECK(scores[0].item<double>() == doctest::Approx(9.0 / 16));
  CHECK(scores[1].item<double>() == doctest::Approx(0.25));
}

TEST_CASE("distance is 0 for parallel and 1 for orthogonal features, and upsampling keeps corners") {
  const auto features = [] {
    diad::Features f;
    for (at::Tensor& map : f) {
      map = at::zeros({1, 2, 3, 3});
      map.select(1, 0).fill_(2);
    }
    return f;
  };
  const diad::Features input = features();
  diad::Features rebuilt = features();
  for (at::Tensor& map : rebuilt) {
    map = map * 3;
    map[0][0][2][2] = 0;
    map[0][1][2][2] = 5;
  }
  const diad::AnomalyMaps maps = diad::anomaly_maps(diad::cosine_distances(input, rebuilt), small_manifest());
  CHECK(maps.distances[0].sizes() == at::IntArrayRef({1, 24, 24}));
  CHECK(maps.distances[1][0][0][0].item<double>() == doctest::Approx(0).epsilon(1e-6));
  CHECK(maps.distances[2][0][23][23].item<double>() == doctest::Approx(1));
  CHECK(maps.raw[0][23][23].item<double>() == doctest::Approx(3));
  CHECK(maps.scores.size() == 1);
  CHECK(maps.scores[0] > 0);
}
