// Tests the metrics of anomaly maps: regions, groups of equal scores, NumPy's arange, cases computed by hand.
#include <array>
#include <limits>
#include <random>

#include "anomalib_curves.h"
#include "class_metrics.h"
#include "image_score.h"
#include "regions.h"
#include "score_groups.h"
#include "support.h"
#include "thresholds.h"

namespace {

using namespace diad::metrics;

const std::function<bool()> kGoOn = [] { return false; };

template <typename Score>
std::vector<ScoreGroup<Score>> groups_of(const std::vector<Score>& scores,
                                         const std::vector<uint32_t>& regions,
                                         const std::vector<double>& weights, size_t capacity) {
  const Score* const row = scores.data();
  ScoreGroups<Score> groups({&row, 1}, scores.size(), regions, weights, capacity, kGoOn);
  std::vector<ScoreGroup<Score>> found;
  groups.descend([&](const ScoreGroup<Score>& group) { found.push_back(group); });
  return found;
}

}  // namespace

TEST_CASE("regions are 8-connected and numbered over all masks") {
  const std::array<uint8_t, 12> first{1, 0, 0, 9, 0, 1, 0, 0, 1, 0, 0, 255},
      second{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7};
  const std::array<const uint8_t*, 2> masks{first.data(), second.data()};
  const Regions regions = label_regions(masks, 3, 4);
  CHECK(regions.areas == std::vector<uint64_t>{3, 1, 1, 1});
  CHECK(regions.of_pixel ==
        std::vector<uint32_t>{1, 0, 0, 2, 0, 1, 0, 0, 1, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4});
}

TEST_CASE("merges labels of a region that connects late") {
  const std::array<uint8_t, 15> spiral{1, 0, 1, 0, 1, 1, 0, 1, 0, 1, 1, 1, 0, 1, 1};
  const std::array<const uint8_t*, 1> masks{spiral.data()};
  CHECK(label_regions(masks, 3, 5).areas == std::vector<uint64_t>{10});
}

TEST_CASE("groups of equal scores are in descending order, with both zeros in one group") {
  const std::vector<double> scores{0.0, -0.0, 3, -1, 3, std::numeric_limits<double>::denorm_min()};
  const auto groups = groups_of<double>(scores, {0, 1, 1, 0, 0, 0}, {0.5}, 100);
  REQUIRE(groups.size() == 4);
  CHECK(groups[0].score == 3);
  CHECK(groups[0].negatives == 1);
  CHECK(groups[0].positives == 1);
  CHECK(groups[0].region_shares == 0.5);
  CHECK(groups[2].score == 0);
  CHECK(groups[2].negatives + groups[2].positives == 2);
  CHECK(groups[3].score == -1);
}

TEST_CASE_TEMPLATE("groups do not depend on the size of the scratch memory", Score, float, double) {
  std::mt19937 random(3);
  std::vector<Score> scores;
  std::vector<uint32_t> regions;
  for (int i = 0; i < 5000; ++i) {
    // Coarse and fine values with both signs and many magnitudes; half of them are tied.
    const double value =
        std::ldexp(static_cast<double>(random() % 2000) - 1000, static_cast<int>(random() % 40) - 20);
    scores.push_back(static_cast<Score>(i % 2 == 0 ? 1.25 : value));
    regions.push_back(static_cast<uint32_t>(random() % 3));
  }
  const std::vector<double> weights{0.25, 0.125};
  const auto whole = groups_of<Score>(scores, regions, weights, scores.size());
  for (const size_t capacity : {size_t{1}, size_t{7}, size_t{300}, size_t{4999}}) {
    const auto split = groups_of<Score>(scores, regions, weights, capacity);
    REQUIRE(split.size() == whole.size());
    for (size_t i = 0; i < whole.size(); ++i) {
      CHECK(split[i].score == whole[i].score);
      CHECK(split[i].negatives == whole[i].negatives);
      CHECK(split[i].positives == whole[i].positives);
      CHECK(split[i].region_shares == whole[i].region_shares);
    }
  }
}

TEST_CASE("numpy_arange rounds length and difference like NumPy") {
  CHECK(numpy_arange(0.0, 1.0, 0.25) == std::vector<double>{0, 0.25, 0.5, 0.75});
  CHECK(numpy_arange(1.0, 1.3, 0.1).size() == 4);  // as in NumPy, 1.3 is included by rounding
  CHECK(numpy_arange(0.0F, 1.0F, 0.0F).empty());
  CHECK(numpy_arange(0.0, 1.0 + 1e-3, 0.05).size() == 21);
}

TEST_CASE("pooled_maximum averages the given number of times") {
  const std::array<float, 9> map{0, 0, 0, 0, 8, 0, 0, 0, 4};
  CHECK(*pooled_maximum(map.data(), 3, 3, 1, 0) == 8);
  CHECK(*pooled_maximum(map.data(), 3, 3, 2, 1) == 3);
  CHECK(*pooled_maximum(map.data(), 3, 3, 2, 2) == doctest::Approx((2 + 2 + 2 + 3) / 4.0));
  CHECK(!pooled_maximum(map.data(), 3, 3, 2, 3));
}

TEST_CASE("rates are scaled by the largest kept rate") {
  // Four background pixels at 1..4, one region of one pixel at 2.5. Thresholds are 1, 1.3, ..., so the rates
  // below 0.3 are 1/4 and 0.
  const std::array<float, 5> map{1, 2, 3, 4, 2.5F};
  const std::array<uint8_t, 5> mask{0, 0, 0, 0, 1};
  const float* const maps[] = {map.data()};
  const uint8_t* const masks[] = {mask.data()};
  const ClassImages<float> images{maps, masks, 1, 5, {}, {}};
  // The defect is below 3, so the overlap is 0 wherever the rate is below 0.3.
  CHECK(*class_metrics(images, Mode::kDiad, {}, kGoOn).au_pro == 0);
  CHECK(!class_metrics(images, Mode::kDiad, {.rate = 0.2}, kGoOn).au_pro);  // only rate 0 is kept: no width
}

TEST_CASE("cancelling stops a computation") {
  const std::array<float, 2> map{1, 2};
  const std::array<uint8_t, 2> mask{0, 1};
  const float* const maps[] = {map.data()};
  const uint8_t* const masks[] = {mask.data()};
  const ClassImages<float> images{maps, masks, 1, 2, {}, {}};
  CHECK_THROWS_AS(class_metrics(images, Mode::kExact, {}, [] { return true; }), Stopped);
}
