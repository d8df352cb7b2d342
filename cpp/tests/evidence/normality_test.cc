// Tests nearest vectors, normalization, combination and the normality file on cases with known results.
#include "evidence/normality.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/cdist.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <limits>

#include "bundle/safetensors.h"
#include "difference.h"
#include "evidence_support.h"
#include "random_tensor.h"
#include "support.h"
#include "support/thread_pool.h"

namespace {

using namespace diad;

std::vector<float> values(const at::Tensor& tensor) {
  const at::Tensor flat = tensor.to(at::kFloat).contiguous().flatten();
  return {flat.const_data_ptr<float>(), flat.const_data_ptr<float>() + flat.numel()};
}

// Statistics of constant maps, with the same mean and divisor everywhere.
NormalClass constant_class(double mean, double divisor, const at::Tensor& memory) {
  NormalClass result;
  result.memory = memory.to(at::kHalf);
  result.images = 3;
  for (size_t i = 0; i < 4; ++i) {
    const std::vector<int64_t> size = map_size(i);
    result.maps.mean[i] = at::full(size, mean, at::kFloat);
    result.maps.divisor[i] = at::full(size, divisor, at::kFloat);
  }
  return result;
}

std::string refusal(const Safetensors& content, const Manifest& manifest = evidence_manifest()) {
  const std::vector<uint8_t> bytes = serialize_safetensors(content);
  return error_of([&] { (void)parse_normality(bytes, "normality.safetensors", manifest); });
}

}  // namespace

TEST_CASE("nearest vectors: distances to a memory of two") {
  NearestVectors memory(at::tensor({0.0F, 0.0F, 3.0F, 4.0F}).view({2, 2}).to(at::kHalf), c10::kCPU);
  const at::Tensor queries = at::tensor({3.0F, 0.0F, 3.0F, 4.0F, 0.0F, -1.0F}).view({3, 2});
  CHECK(values(memory.distances(queries)) == std::vector<float>{3, 0, 1});
  CHECK(values(memory.distances(queries, {1, 2})) == std::vector<float>{3, 5, 1});
  CHECK(values(memory.distances(queries, {0, 1})) == std::vector<float>{4, 0, std::sqrt(34.0F)});
  CHECK(std::isinf(values(memory.distances(queries, {0, 2}))[0]));
}

TEST_CASE("nearest vectors: the distance of a NaN query is NaN") {
  NearestVectors memory(at::ones({3, 2}, at::kHalf), c10::kCPU);
  const at::Tensor queries = at::tensor({std::numeric_limits<float>::quiet_NaN(), 0.0F}).view({1, 2});
  CHECK(std::isnan(values(memory.distances(queries))[0]));
}

TEST_CASE("nearest vectors: match an exhaustive search for any left-out range and number of threads") {
  const at::Tensor vectors = random_tensor({1003, 37}, 1).to(at::kHalf),
                   queries = random_tensor({517, 37}, 2);
  const at::Tensor all = at::cdist(queries.to(at::kDouble), vectors.to(at::kDouble));
  NearestVectors memory(vectors, c10::kCPU);
  ThreadPool pool(1);
  for (const auto& [first, last] : {std::pair<int64_t, int64_t>{0, 0}, {0, 500}, {400, 1003}, {13, 991}}) {
    const at::Tensor expected =
        at::cat({all.narrow(1, 0, first), all.narrow(1, last, 1003 - last)}, 1).amin(1);
    const at::Tensor alone = memory.distances(queries, {first, last});
    CHECK((alone - expected).abs().max().item<double>() < 1e-5);
    const ThreadPoolScope sharing(pool);
    CHECK(memory.distances(queries, {first, last}).equal(alone));
  }
}

TEST_CASE("normal maps: smoothing keeps constants, and 0.3 times the average spread is added") {
  const NormalMap normal =
      normal_map(at::full({1, 5, 7}, 2.0, at::kDouble), at::full({1, 5, 7}, 0.5, at::kDouble));
  CHECK((normal.mean - 2).abs().max().item<double>() < 1e-6);
  CHECK((normal.divisor - 0.65).abs().max().item<double>() < 1e-6);
}

TEST_CASE("normal maps: smoothing is a Gaussian with sigma 1 and reflected borders") {
  at::Tensor spread = at::zeros({1, 1, 9}, at::kDouble);
  spread[0][0][0] = 1;  // reflected at the border, it counts twice
  const std::vector<float> smooth = values(normal_map(spread, at::ones({1, 1, 9}, at::kDouble)).mean);
  double total = 0;
  for (int k = -4; k <= 4; ++k) total += std::exp(-0.5 * k * k);
  CHECK(smooth[0] == doctest::Approx((1 + std::exp(-0.5)) / total));
  CHECK(smooth[2] == doctest::Approx((std::exp(-2.0) + std::exp(-4.5)) / total));
  CHECK(smooth[5] == 0);
}

TEST_CASE("normal maps: identical images have a divisor above 0") {
  const NormalMap normal = normal_map(at::ones({1, 3, 3}, at::kDouble), at::zeros({1, 3, 3}, at::kDouble));
  CHECK(normal.divisor.min().item<float>() == static_cast<float>(kSmallestDivisor));
}

TEST_CASE("evidence: combines constant maps") {
  Manifest manifest = evidence_manifest();  // weights 0.5 and 1
  manifest.evidence->class_weights["gear"] = {.reconstruction = 2, .memory = 0.25};
  EvidenceMaps maps;
  for (size_t i = 0; i < 4; ++i)
    maps[i] = at::full({2, map_size(i)[0], map_size(i)[1]}, static_cast<double>(i + 1), at::kFloat);
  const Evidence evidence = EvidenceCombiner(manifest, c10::kCPU)(maps, std::vector<std::string>{""});
  CHECK((evidence.raw - 7).abs().max().item<double>() < 1e-5);  // 0.5 * (1 + 2 + 3) + 4
  CHECK((evidence.smooth - 7).abs().max().item<double>() < 1e-5);
  for (size_t i = 0; i < 2; ++i) {
    CHECK(evidence.scores[i] == doctest::Approx(7));
    CHECK(evidence.reconstruction[i] == doctest::Approx(3));
    CHECK(evidence.memory[i] == doctest::Approx(4));
  }
  const Evidence by_class =
      EvidenceCombiner(manifest, c10::kCPU)(maps, std::vector<std::string>{"nut", "gear"});
  CHECK(by_class.scores[0] == doctest::Approx(7));
  CHECK(by_class.reconstruction[1] == doctest::Approx(12));
  CHECK(by_class.memory[1] == doctest::Approx(1));
  CHECK(by_class.scores[1] == doctest::Approx(13));
}

TEST_CASE("evidence: blurs and pools like the published map") {
  const Manifest manifest = evidence_manifest();
  EvidenceMaps maps;
  for (size_t i = 0; i < 4; ++i) maps[i] = random_tensor({3, map_size(i)[0], map_size(i)[1]}, i);
  const Evidence evidence = EvidenceCombiner(manifest, c10::kCPU)(maps, std::vector<std::string>{""});
  const auto large = [&](size_t i) { return enlarged(maps[i], manifest.image_size).to(at::kDouble); };
  const at::Tensor reconstruction = 0.5 * (large(0) + large(1) + large(2)), memory = large(3);
  const auto blurred = [&](const at::Tensor& map) {
    return gaussian_blur(map, manifest.map_sigma, manifest.map_truncate);
  };
  const auto score = [&](const at::Tensor& map, int64_t i) {
    return pooled_maximum(blurred(map), manifest.pool_size, manifest.pool_count)[i].item<double>();
  };
  CHECK((evidence.smooth - blurred(reconstruction + memory)).abs().max().item<double>() < 1e-12);
  for (int64_t i = 0; i < 3; ++i) {
    const auto at = static_cast<size_t>(i);
    CHECK(evidence.scores[at] == doctest::Approx(score(reconstruction + memory, i)).epsilon(1e-12));
    CHECK(evidence.reconstruction[at] == doctest::Approx(score(reconstruction, i)).epsilon(1e-12));
    CHECK(evidence.memory[at] == doctest::Approx(score(memory, i)).epsilon(1e-12));
  }
}

TEST_CASE("normality: judges by the entry of an image's class, otherwise by the most similar class") {
  const Manifest manifest = evidence_manifest();
  // One vector each: (0, 0) for bolts, (3, 4) for gears.
  const NormalClasses classes{{"bolt", constant_class(0, 1, at::zeros({1, 2}))},
                              {"gear", constant_class(1, 2, at::tensor({3.0F, 4.0F}).view({1, 2}))}};
  Normality normality(classes, manifest, c10::kCPU);
  Features distances;
  for (size_t i = 0; i < 3; ++i) distances[i] = at::full({3, map_size(i)[0], map_size(i)[1]}, 3, at::kFloat);
  const at::Tensor embedding = at::tensor({3.0F, 4.0F}).view({1, 2, 1, 1}).expand({3, 2, 3, 3});
  std::vector<std::string> names{"", "bolt", "bolt"};
  const Normality::Judgement judgement = normality.judge(distances, embedding, names);
  CHECK(judgement.classes == std::vector<std::string>{"gear", "bolt", "bolt"});
  CHECK(values(judgement.memory_distance.amax({1, 2})) == std::vector<float>{0, 5, 5});
  // Gear: 0.5 * 3 * (3 - 1) / 2 and (0 - 1) / 2. Bolt: 0.5 * 3 * 3 and 5.
  const double reconstruction[] = {1.5, 4.5, 4.5}, memory[] = {-0.5, 5, 5};
  for (size_t i = 0; i < 3; ++i) {
    CHECK(judgement.evidence.reconstruction[i] == doctest::Approx(reconstruction[i]));
    CHECK(judgement.evidence.memory[i] == doctest::Approx(memory[i]));
    CHECK(judgement.evidence.scores[i] == doctest::Approx(reconstruction[i] + memory[i]));
  }
  names = {"gear", "unknown", "unknown"};
  CHECK(normality.judge(distances, embedding, names).classes ==
        std::vector<std::string>{"gear", "gear", "gear"});
  distances[1] = at::zeros({3, 5, 4});
  CHECK(contains(error_of([&] { (void)normality.judge(distances, embedding, names); }),
                 "ERR_DIAD_BUNDLE_INVALID: The normality file has maps of [4, 4] but this bundle produces "
                 "maps of [5, 4]"));
}

TEST_CASE("normality: round trip of the file") {
  const NormalClasses classes{{"", constant_class(0.25, 1.5, random_tensor({7, 2}, 1))},
                              {"a/b", constant_class(1, 2, random_tensor({5, 2}, 2))}};
  const NormalClasses read =
      parse_normality(serialize_normality(classes), "normality.safetensors", evidence_manifest());
  REQUIRE(read.size() == 2);
  for (const auto& [name, expected] : classes) {
    const NormalClass& found = read.at(name);
    CHECK(found.images == 3);
    CHECK(found.memory.equal(expected.memory));
    for (size_t i = 0; i < 4; ++i) {
      CHECK(found.maps.mean[i].equal(expected.maps.mean[i]));
      CHECK(found.maps.divisor[i].equal(expected.maps.divisor[i]));
    }
  }
}

TEST_CASE("normality: rejects files of another kind or size") {
  const NormalClasses classes{{"", constant_class(0, 1, random_tensor({7, 2}, 1))}};
  const Safetensors good = parse_safetensors(serialize_normality(classes), "x");
  CHECK(refusal(good) == "no error");
  const auto changed = [&](const auto& change) {
    Safetensors other = good;
    change(other);
    return refusal(other);
  };
  const auto with = [&](const char* name, const at::Tensor& tensor) {
    return changed([&](Safetensors& other) { other.tensors[name] = tensor; });
  };
  const auto said = [&](const char* key, const char* value) {
    return changed([&](Safetensors& other) { other.metadata[key] = value; });
  };
  CHECK(contains(said("format", "other"),
                 "ERR_DIAD_BUNDLE_INVALID: normality.safetensors: Expected the format diad-normality"));
  CHECK(contains(said("version", "2"), "Expected version 1 but received \"2\""));
  CHECK(contains(said("images", "{"), "at least one entry for the metadata images"));
  CHECK(contains(said("images", "{}"), "at least one entry for the metadata images"));
  CHECK(contains(said("images", R"({"": -1})"), "Expected a number of images"));
  CHECK(contains(said("images", R"({"": 1, "a": 1})"), "Expected a tensor a/memory but it is absent"));
  CHECK(contains(changed([](Safetensors& other) { other.tensors.erase("/mean.3"); }),
                 "Expected a tensor /mean.3 but it is absent"));
  CHECK(contains(with("/more", at::ones({1}, at::kFloat)), "Expected no tensor /more"));
  CHECK(contains(with("/memory", at::ones({7, 3}, at::kHalf)),
                 "Expected [7, 2] for /memory but received [7, 3]"));
  CHECK(contains(with("/memory", at::ones({101, 2}, at::kHalf)),
                 "Expected at most 100 vectors for /memory but received 101"));
  CHECK(contains(with("/memory", at::ones({0, 2}, at::kHalf)), "Expected a matrix of F16 for /memory"));
  CHECK(contains(with("/memory", at::ones({7, 2}, at::kFloat)), "Expected a matrix of F16 for /memory"));
  CHECK(contains(with("/mean.4", at::ones({4, 3}, at::kFloat)),
                 "Expected [4, 3] for /spread.4 but received [3, 3]"));
  CHECK(
      contains(with("/spread.2", at::zeros({4, 4}, at::kFloat)), "Expected positive numbers for /spread.2"));
  CHECK(contains(with("/mean.1", at::full({6, 6}, std::numeric_limits<double>::infinity(), at::kFloat)),
                 "Expected finite numbers for /mean.1"));
  Manifest other = evidence_manifest();
  other.evidence->grid = 5;
  CHECK(contains(refusal(good, other),
                 "Expected [5, 5] for /mean.4 but received [3, 3]; calibrate this bundle again"));
  std::vector<uint8_t> cut = serialize_normality(classes);
  cut.pop_back();
  CHECK(contains(error_of([&] { (void)parse_normality(cut, "normality.safetensors", evidence_manifest()); }),
                 "ERR_DIAD_BUNDLE_CORRUPT"));
}
