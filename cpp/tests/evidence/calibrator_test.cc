// Tests calibration from maps and vectors on images with known results.
#include "evidence/calibrator.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/full.h>
#include <ATen/ops/stack.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cmath>

#include "evidence/normality.h"
#include "evidence_support.h"
#include "random_tensor.h"
#include "support.h"
#include "support/cancellation.h"

namespace {

using namespace diad;

constexpr CalibrationRoles kBoth{true, true};

// Adds an image whose three maps are `distance` everywhere and whose vectors are all (place, 0).
void add_constant(Calibrator& calibrator, int64_t index, double distance, double place,
                  CalibrationRoles roles = kBoth, const std::string& class_name = "") {
  Features distances;
  for (size_t i = 0; i < 3; ++i) distances[i] = at::full(map_size(i), distance, at::kFloat);
  const at::Tensor embedding =
      at::stack({at::full({3, 3}, place, at::kFloat), at::full({3, 3}, 0.0, at::kFloat)});
  calibrator.add(index, class_name, roles, distances, embedding);
}

void add_random(Calibrator& calibrator, int64_t index, const std::string& class_name = "") {
  const auto seed = static_cast<uint64_t>(index) * 10;
  Features distances;
  for (size_t i = 0; i < 3; ++i) distances[i] = random_tensor(map_size(i), seed + i).abs();
  calibrator.add(index, class_name, kBoth, distances, random_tensor({2, 3, 3}, seed + 3));
}

NormalClasses classes_of(const Calibration& calibration) {
  return parse_normality(calibration.normality, "normality.safetensors", evidence_manifest());
}

}  // namespace

TEST_CASE("calibrator: statistics and leave-one-out scores of four images") {
  Calibrator calibrator(evidence_manifest(), 2);
  const double distances[] = {1, 2, 6, 3}, places[] = {0, 1, 10, 13};
  for (int64_t i = 0; i < 4; ++i) add_constant(calibrator, i, distances[i], places[i]);
  const Calibration calibration = calibrator.finish();
  const NormalClasses classes = classes_of(calibration);
  REQUIRE(classes.size() == 1);
  const NormalClass& all = classes.at("");
  CHECK(all.images == 4);
  CHECK(all.memory.sizes() == at::IntArrayRef{36, 2});  // all vectors
  // Mean 3, squares 4 + 1 + 9 + 0 over 3. The distances to the memory without the image itself are 1, 1, 3,
  // 3.
  const double mean[] = {3, 3, 3, 2},
               spread[] = {std::sqrt(14.0 / 3), std::sqrt(14.0 / 3), std::sqrt(14.0 / 3), std::sqrt(4.0 / 3)};
  for (size_t i = 0; i < 4; ++i) {
    CHECK((all.maps.mean[i] - mean[i]).abs().max().item<double>() < 1e-5);
    CHECK((all.maps.divisor[i] - 1.3 * spread[i]).abs().max().item<double>() < 1e-5);
  }
  REQUIRE(calibration.images.size() == 4);
  const UnseenScore& third = calibration.images[2];
  // The other images: 1, 2, 3 with mean 2 and spread 1; 1, 1, 3 with mean 5/3 and spread sqrt(4/3).
  const double reconstruction = 0.5 * 3 * (6 - 2) / 1.3, memory = (3 - 5.0 / 3) / (1.3 * std::sqrt(4.0 / 3));
  CHECK(third.index == 2);
  CHECK(third.reconstruction == doctest::Approx(reconstruction).epsilon(1e-5));
  CHECK(third.memory == doctest::Approx(memory).epsilon(1e-5));
  CHECK(third.score == doctest::Approx(reconstruction + memory).epsilon(1e-5));
  CHECK(third.peak == doctest::Approx(reconstruction + memory).epsilon(1e-5));
}

TEST_CASE("calibrator: roles determine how an image is used") {
  Calibrator calibrator(evidence_manifest(), 1);
  add_constant(calibrator, 0, 1, 0);
  add_constant(calibrator, 1, 2, 10);
  add_constant(calibrator, 2, 100, 1, {true, false});   // lowers the distance of image 0 from 10 to 1
  add_constant(calibrator, 3, 6, 10.5, {false, true});  // not a neighbor of image 1
  const Calibration calibration = calibrator.finish();
  const NormalClasses classes = classes_of(calibration);
  const NormalClass& all = classes.at("");
  CHECK(all.images == 3);
  CHECK(all.memory.size(0) == 27);
  CHECK((all.maps.mean[0] - 3).abs().max().item<double>() < 1e-5);         // 1, 2, 6
  CHECK((all.maps.mean[3] - 10.5 / 3).abs().max().item<double>() < 1e-4);  // 1, 9, 0.5
  REQUIRE(calibration.images.size() == 3);
  CHECK(calibration.images[2].index == 3);
}

TEST_CASE("calibrator: the order of images does not matter, and a repeated index replaces the image") {
  Manifest manifest = evidence_manifest();
  manifest.evidence->memory_vectors = 20;  // of 54
  Calibrator forwards(manifest, 1), backwards(manifest, 3);
  for (int64_t i = 0; i < 6; ++i) add_random(forwards, i);
  add_constant(backwards, 3, 1, 1);
  for (int64_t i = 5; i >= 0; --i) add_random(backwards, i);
  const Calibration a = forwards.finish(), b = backwards.finish();
  CHECK(a.normality == b.normality);
  CHECK(classes_of(a).at("").memory.size(0) == 20);
  REQUIRE(a.images.size() == 6);
  for (size_t i = 0; i < 6; ++i) {
    CHECK(a.images[i].index == static_cast<int64_t>(i));
    CHECK(a.images[i].score == b.images[i].score);
  }
}

TEST_CASE("calibrator: an image's score matches a calibration without it") {
  Calibrator all(evidence_manifest(), 1), others(evidence_manifest(), 1);
  for (int64_t i = 0; i < 5; ++i) add_random(all, i);
  for (int64_t i = 0; i < 4; ++i) add_random(others, i);
  const UnseenScore last = all.finish().images.at(4);
  Normality normality(classes_of(others.finish()), evidence_manifest(), c10::kCPU);
  Features distances;
  for (size_t i = 0; i < 3; ++i) distances[i] = random_tensor(map_size(i), 40 + i).abs().unsqueeze(0);
  const std::vector<std::string> names{""};
  const Evidence unseen =
      normality.judge(distances, random_tensor({2, 3, 3}, 43).unsqueeze(0), names).evidence;
  CHECK(last.reconstruction == doctest::Approx(unseen.reconstruction[0]).epsilon(1e-5));
  // The statistics of the other images' memory distances include the last image's vectors, so the scores are
  // only similar.
  CHECK(last.memory == doctest::Approx(unseen.memory[0]).epsilon(0.5));
}

TEST_CASE("calibrator: learns an entry per class, and one of all images where some have no class") {
  Calibrator calibrator(evidence_manifest(), 1);
  for (int64_t i = 0; i < 3; ++i) add_constant(calibrator, i, 1 + static_cast<double>(i), 0, kBoth, "gear");
  for (int64_t i = 3; i < 7; ++i) add_constant(calibrator, i, 10 * static_cast<double>(i), 5, kBoth, "nut");
  add_constant(calibrator, 7, 4, 5);
  const Calibration calibration = calibrator.finish();
  const NormalClasses classes = classes_of(calibration);
  REQUIRE(classes.size() == 3);
  CHECK(classes.at("").images == 8);
  CHECK(classes.at("gear").images == 3);
  CHECK(classes.at("nut").images == 4);
  CHECK((classes.at("gear").maps.mean[0] - 2).abs().max().item<double>() < 1e-5);
  CHECK((classes.at("nut").maps.mean[0] - 45).abs().max().item<double>() < 1e-4);
  REQUIRE(calibration.images.size() == 8);
  CHECK(calibration.images[2].reconstruction ==
        doctest::Approx(0.5 * 3 * 1.5 / (1.3 * std::sqrt(0.5))).epsilon(1e-5));
  // No class: judged by all images. Distances 1 2 3 30 40 50 60 have a mean of 26.57 and a deviation
  // of 24.74.
  CHECK(calibration.images[7].reconstruction ==
        doctest::Approx(0.5 * 3 * (4 - 26.5714) / (1.3 * 24.7377)).epsilon(1e-4));
  Calibrator one_class(evidence_manifest(), 1);
  for (int64_t i = 0; i < 3; ++i) add_random(one_class, i, "gear");
  const NormalClasses only = classes_of(one_class.finish());
  REQUIRE(only.size() == 1);
  CHECK(only.contains(""));
}

TEST_CASE("calibrator: requires at least two images") {
  Calibrator calibrator(evidence_manifest(), 1);
  CHECK(contains(
      error_of([&] { (void)calibrator.finish(); }),
      "ERR_DIAD_INVALID_ARGUMENT: Expected at least 2 calibration images for all images but received 0"));
  add_constant(calibrator, 0, 1, 0);
  CHECK(contains(error_of([&] { (void)calibrator.finish(); }), "but received 1; add defect-free images"));
  add_constant(calibrator, 1, 3, 4);
  const Calibration calibration = calibrator.finish();
  REQUIRE(calibration.images.size() == 2);
  // A single other image has no spread; the spread of both is sqrt(2).
  CHECK(calibration.images[1].reconstruction ==
        doctest::Approx(0.5 * 3 * 2 / (1.3 * std::sqrt(2.0))).epsilon(1e-5));
  add_constant(calibrator, 2, 1, 0, kBoth, "lonely");
  CHECK(contains(error_of([&] { (void)calibrator.finish(); }),
                 "Expected at least 2 calibration images for the class \"lonely\" but received 1"));
}

TEST_CASE("calibrator: requires vectors of at least two images") {
  Calibrator calibrator(evidence_manifest(), 1);
  add_constant(calibrator, 0, 1, 0);
  add_constant(calibrator, 1, 2, 0, {false, true});
  CHECK(contains(error_of([&] { (void)calibrator.finish(); }),
                 "ERR_DIAD_INVALID_ARGUMENT: Expected vectors of at least 2 images in the memory for all "
                 "images but received those of 1"));
}

TEST_CASE("calibrator: identical images give finite scores") {
  Calibrator calibrator(evidence_manifest(), 1);
  for (int64_t i = 0; i < 4; ++i) add_constant(calibrator, i, 0.5, 2);
  for (const UnseenScore& image : calibrator.finish().images) {
    CHECK(image.score == doctest::Approx(0));
    CHECK(std::isfinite(image.peak));
  }
}

TEST_CASE("calibrator: uses an evenly spaced subset of too many images") {
  Calibrator calibrator(evidence_manifest(), 2);
  for (int64_t i = 0; i < 2 * Calibrator::kMostImages; ++i)
    add_constant(calibrator, i, static_cast<double>(i % 7), static_cast<double>(i % 5));
  const Calibration calibration = calibrator.finish();
  REQUIRE(static_cast<int64_t>(calibration.images.size()) == Calibrator::kMostImages);
  for (size_t i = 0; i < calibration.images.size(); ++i)
    CHECK(calibration.images[i].index == 2 * static_cast<int64_t>(i));
}

TEST_CASE("calibrator: rejects values that are not finite in half precision") {
  Calibrator calibrator(evidence_manifest(), 1);
  CHECK(contains(error_of([&] { add_constant(calibrator, 4, 1, 1e6); }),
                 "ERR_DIAD_INTERNAL: The vectors of calibration image 4 contain"));
  CHECK(contains(error_of([&] { add_constant(calibrator, 5, std::nan(""), 1); }),
                 "The maps of calibration image 5 contain"));
}

TEST_CASE("calibrator: requires a bundle with evidence and can be cancelled") {
  CHECK(contains(error_of([] { const Calibrator calibrator(Manifest{}, 1); }),
                 "ERR_DIAD_INVALID_ARGUMENT: The bundle  has no evidence"));
  Calibrator calibrator(evidence_manifest(), 1);
  for (int64_t i = 0; i < 3; ++i) add_random(calibrator, i);
  const CancellationScope scope([] { return true; });
  CHECK_THROWS_AS((void)calibrator.finish(), Cancelled);
}
