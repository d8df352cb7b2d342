// The sampler's plan: start and steps.
#include "sampler.h"

#include <cmath>

#include "support.h"

namespace {

// Steps of the published schedule: betas = linspace(sqrt 0.00085, sqrt 0.0120, 1000)^2, `count` evenly spaced timesteps from 1 on.
diad::Manifest scheduled(int64_t count) {
  std::vector<float> alpha_bar;
  double product = 1;
  for (int i = 0; i < 1000; ++i) {
    const double root = std::sqrt(0.00085) + (std::sqrt(0.0120) - std::sqrt(0.00085)) * i / 999;
    product *= 1 - root * root;
    alpha_bar.push_back(static_cast<float>(product));
  }
  diad::Manifest m;
  m.sqrt_alpha_bar_noise = 0.0625F;
  m.sqrt_one_minus_alpha_bar_noise = 0.5F;
  for (int64_t i = count - 1; i >= 0; --i) {
    const int64_t stride = 1000 / count, t = i * stride + 1, target = i == 0 ? 0 : t - stride;
    m.steps.push_back({t, alpha_bar[static_cast<size_t>(t)], alpha_bar[static_cast<size_t>(target)]});
  }
  return m;
}

std::vector<int64_t> timesteps(const diad::SamplingPlan& plan) {
  std::vector<int64_t> result;
  for (const auto& [index, step] : plan.steps) result.push_back(step.timestep);
  return result;
}

}  // namespace

TEST_CASE("sampling plan: the defaults are the bundle's steps, unchanged") {
  const diad::Manifest m = scheduled(10);
  const diad::SamplingPlan plan = diad::plan_sampling(m, {});
  CHECK(plan.signal == 0.0625);
  CHECK(plan.spread == 0.5);
  REQUIRE(plan.steps.size() == 10);
  for (size_t i = 0; i < 10; ++i) {
    CHECK(plan.steps[i].index == static_cast<int64_t>(i));
    CHECK(plan.steps[i].step.timestep == m.steps[i].timestep);
    CHECK(plan.steps[i].step.alpha_bar == m.steps[i].alpha_bar);
    CHECK(plan.steps[i].step.alpha_bar_prev == m.steps[i].alpha_bar_prev);
  }
}

TEST_CASE("sampling plan: fewer steps are spread evenly, each goes to the next one's level, the last to the bundle's end") {
  const diad::Manifest m = scheduled(10);
  const diad::SamplingPlan plan = diad::plan_sampling(m, {.steps = 4});
  CHECK(timesteps(plan) == std::vector<int64_t>{901, 701, 401, 201});
  CHECK(plan.steps[1].index == 2);
  CHECK(plan.steps[0].step.alpha_bar_prev == m.steps[2].alpha_bar);
  CHECK(plan.steps[3].step.alpha_bar_prev == m.steps[9].alpha_bar_prev);
  CHECK(timesteps(diad::plan_sampling(m, {.steps = 1})) == std::vector<int64_t>{901});
}

TEST_CASE("sampling plan: a lower start puts the noise on there; without noise only the signal is scaled") {
  const diad::Manifest m = scheduled(10);
  const diad::SamplingPlan plan = diad::plan_sampling(m, {.start_timestep = 401});
  CHECK(timesteps(plan) == std::vector<int64_t>{401, 301, 201, 101, 1});
  CHECK(plan.signal == doctest::Approx(std::sqrt(0.42288151)).epsilon(1e-7));
  CHECK(plan.spread == doctest::Approx(std::sqrt(1 - 0.42288151)).epsilon(1e-7));
  const diad::SamplingPlan still = diad::plan_sampling(m, {.steps = 2, .start_timestep = 401, .start_noise = diad::StartNoise::kNone});
  CHECK(timesteps(still) == std::vector<int64_t>{401, 201});
  CHECK(still.signal == plan.signal);
  CHECK(still.spread == 0);
}

TEST_CASE("sampling plan: what the bundle does not have is refused with what it has") {
  const diad::Manifest m = scheduled(10);
  CHECK(contains(error_of([&] { (void)diad::plan_sampling(m, {.start_timestep = 500}); }),
                 "ERR_DIAD_INVALID_ARGUMENT: Expected one of the bundle's timesteps (901, 801, 701, 601, 501, 401, 301, 201, 101, 1) for "
                 "startTimestep but received 500"));
  CHECK(contains(error_of([&] { (void)diad::plan_sampling(m, {.steps = 11}); }), "Expected 1 to 10 for steps but received 11"));
  CHECK(contains(error_of([&] { (void)diad::plan_sampling(m, {.steps = 3, .start_timestep = 101}); }), "Expected 1 to 2 for steps"));
}
