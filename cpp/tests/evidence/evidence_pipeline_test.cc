// Tests evidence in the pipeline: the effect of a normality and the data that a calibrator receives.
#include <ATen/TensorOperators.h>
#include <ATen/ops/adaptive_avg_pool2d.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/upsample_nearest2d.h>
#include <c10/core/InferenceMode.h>

#include <string>
#include <utility>
#include <vector>

#include "pipeline/pipeline.h"
#include "support.h"

namespace {

using namespace diad;

constexpr uint32_t kSize = 16;
constexpr Wanted kEverything{.map = true, .reconstruction = true, .stages = true};

Manifest manifest_with(bool evidence) {
  Manifest m;
  m.name = "small";
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
  m.steps = {{901, 0.1F, 0.5F}};
  m.map_sigma = 1;
  m.map_truncate = 4;
  m.pool_size = 4;
  m.pool_count = 2;
  if (evidence) {
    m.evidence = {
        .dimensions = 3, .grid = 4, .memory_vectors = 40, .weights = {.reconstruction = 0.5, .memory = 1}};
  }
  return m;
}

class FakeNetworks final : public Networks {
 public:
  explicit FakeNetworks(int& embedded, int64_t grid = 4) : embedded_(embedded), grid_(grid) {}

  at::Tensor encode(const at::Tensor& x) override {
    const at::Tensor mean = at::adaptive_avg_pool2d(x, {4, 4});
    return at::cat({mean, mean - 3}, 1);
  }
  at::Tensor guide(const at::Tensor& x) override { return at::adaptive_avg_pool2d(x, {4, 4}); }
  at::Tensor denoise(const at::Tensor& z, const at::Tensor& hint, int64_t /*step*/) override {
    return z * 0.5 - hint * 0.25;
  }
  at::Tensor decode(const at::Tensor& z) override { return at::upsample_nearest2d(z, {kSize, kSize}).tanh(); }
  Features extract(const at::Tensor& x) override {
    return {at::adaptive_avg_pool2d(x, {8, 8}), at::adaptive_avg_pool2d(x, {4, 4}),
            at::adaptive_avg_pool2d(x, {2, 2})};
  }
  at::Tensor embed(const Features& maps) override {
    embedded_ += static_cast<int>(maps[0].size(0));
    return at::adaptive_avg_pool2d(maps[0], {grid_, grid_});
  }

 private:
  int& embedded_;
  int64_t grid_;
};

Frame frame_of(uint8_t first) {
  Frame frame{std::vector<uint8_t>(kSize * kSize * 3), kSize, kSize, 3};
  for (size_t i = 0; i < frame.pixels.size(); ++i)
    frame.pixels[i] = static_cast<uint8_t>(first + 7 * i + first * (i % 11));
  return frame;
}

struct Run {
  std::vector<ImageResult> results;
  int embedded = 0;  // images
};

Run run(const Manifest& manifest, std::span<const ImageRequest> batch,
        std::unique_ptr<Normality> normality = nullptr) {
  Run result;
  Pipeline pipeline(manifest, std::make_unique<FakeNetworks>(result.embedded), c10::kCPU, at::kFloat, false,
                    std::move(normality));
  result.results = pipeline.run(batch, [](int64_t, int64_t) { return true; });
  return result;
}

const Stage* stage(const ImageResult& result, const std::string& name) {
  for (const Stage& found : result.stages) {
    if (found.name == name) return &found;
  }
  return nullptr;
}

// Five images of two classes.
struct Images {
  std::vector<Frame> frames;
  std::vector<ImageRequest> batch(const std::shared_ptr<Calibrator>& calibrator,
                                  const std::vector<std::string>& classes) const {
    std::vector<ImageRequest> requests;
    for (size_t i = 0; i < frames.size(); ++i) {
      requests.push_back({&frames[i],
                          i,
                          kEverything,
                          classes[i],
                          {calibrator, static_cast<int64_t>(i), {.in_memory = true, .in_statistics = true}}});
    }
    return requests;
  }
};

Images five_images() {
  Images images;
  for (const uint8_t first : std::initializer_list<uint8_t>{1, 3, 4, 90, 97})
    images.frames.push_back(frame_of(first));
  return images;
}

const std::vector<std::string> kClasses{"dark", "dark", "dark", "light", "light"};

std::unique_ptr<Normality> calibrated(const Manifest& manifest) {
  const auto calibrator = std::make_shared<Calibrator>(manifest, 1);
  static_cast<void>(run(manifest, five_images().batch(calibrator, kClasses)));
  const NormalClasses classes =
      parse_normality(calibrator->finish().normality, "normality.safetensors", manifest);
  return std::make_unique<Normality>(classes, manifest, c10::kCPU);
}

}  // namespace

TEST_CASE("evidence: without a normality a bundle with evidence returns the published map and score") {
  const Images images = five_images();
  const Run plain = run(manifest_with(false), images.batch(nullptr, kClasses)),
            able = run(manifest_with(true), images.batch(nullptr, kClasses));
  CHECK(able.embedded == 0);
  for (size_t i = 0; i < images.frames.size(); ++i) {
    CHECK(able.results[i].score == plain.results[i].score);
    CHECK(able.results[i].map == plain.results[i].map);
    CHECK_FALSE(able.results[i].evidence.has_value());
    CHECK(able.results[i].stages.size() == plain.results[i].stages.size());
    CHECK(stage(able.results[i], "embedding") == nullptr);
  }
}

TEST_CASE("evidence: calibration receives every image of a batch without changing its result") {
  const Manifest manifest = manifest_with(true);
  const Images images = five_images();
  const auto calibrator = std::make_shared<Calibrator>(manifest, 1);
  const Run calibrating = run(manifest, images.batch(calibrator, kClasses)),
            plain = run(manifest, images.batch(nullptr, kClasses));
  CHECK(calibrating.embedded == 5);
  for (size_t i = 0; i < images.frames.size(); ++i) {
    CHECK(calibrating.results[i].score == plain.results[i].score);
    CHECK(calibrating.results[i].map == plain.results[i].map);
  }
  const Calibration calibration = calibrator->finish();
  CHECK(calibration.images.size() == 5);
  const NormalClasses classes = parse_normality(calibration.normality, "normality.safetensors", manifest);
  CHECK(classes.at("dark").images == 3);
  CHECK(classes.at("light").images == 2);
}

TEST_CASE("evidence: with a normality the map combines the evidence and is scored the same way") {
  const c10::InferenceMode guard;
  const Manifest manifest = manifest_with(true);
  const Images images = five_images();
  const Run judged = run(manifest, images.batch(nullptr, kClasses), calibrated(manifest));
  CHECK(judged.embedded == 5);
  for (const ImageResult& result : judged.results) {
    REQUIRE(result.evidence.has_value());
    const Stage* embedding = stage(result, "embedding");
    const Stage* distance = stage(result, "memory_distance");
    REQUIRE(embedding != nullptr);
    REQUIRE(distance != nullptr);
    CHECK(embedding->shape == std::vector<int64_t>{3, 4, 4});
    CHECK(distance->shape == std::vector<int64_t>{4, 4});
    const at::Tensor map =
        at::from_blob(const_cast<float*>(result.map.data()), {1, kSize, kSize}, at::kFloat).to(at::kDouble);
    CHECK(result.score == doctest::Approx(pooled_maximum(map, 4, 2).item<double>()).epsilon(1e-5));
    CHECK(stage(result, "map")->values == result.map);
    CHECK(stage(result, "distance_layer1")->shape == std::vector<int64_t>{kSize, kSize});
  }
}

TEST_CASE("evidence: an image in the memory has small distances, and the class name selects the entry") {
  const Manifest manifest = manifest_with(true);
  const Images images = five_images();
  const Run own = run(manifest, images.batch(nullptr, kClasses), calibrated(manifest));
  const Run other =
      run(manifest, images.batch(nullptr, {"light", "light", "light", "dark", "dark"}), calibrated(manifest));
  for (size_t i = 0; i < images.frames.size(); ++i) {
    for (const float distance : stage(own.results[i], "memory_distance")->values) CHECK(distance < 1.5F);
    CHECK(other.results[i].score != own.results[i].score);
  }
}

TEST_CASE("evidence: rejects an embedding whose size differs from the manifest") {
  const Manifest manifest = manifest_with(true);
  const Images images = five_images();
  int embedded = 0;
  Pipeline pipeline(manifest, std::make_unique<FakeNetworks>(embedded, 5), c10::kCPU, at::kFloat, false,
                    calibrated(manifest));
  CHECK(contains(
      error_of([&] {
        (void)pipeline.run(images.batch(nullptr, kClasses), [](int64_t, int64_t) { return true; });
      }),
      "ERR_DIAD_BUNDLE_INVALID: extractor.pt: Expected a result of [5, 3, 4, 4] but received [5, 3, 5, 5]"));
}
