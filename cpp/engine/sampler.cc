#include "sampler.h"

#include <algorithm>
#include <cmath>

#include "error.h"

namespace diad {

namespace {

// Place of a timestep in the manifest's steps.
size_t place_of(int64_t timestep, const std::vector<DdimStep>& steps) {
  const auto found = std::find_if(steps.begin(), steps.end(), [timestep](const DdimStep& step) { return step.timestep == timestep; });
  if (found != steps.end()) return static_cast<size_t>(found - steps.begin());
  std::string known;
  for (const DdimStep& step : steps) known += (known.empty() ? "" : ", ") + std::to_string(step.timestep);
  throw EngineError(code::kInvalidArgument,
                    "Expected one of the bundle's timesteps (" + known + ") for startTimestep but received " + std::to_string(timestep));
}

}  // namespace

SamplingPlan plan_sampling(const Manifest& manifest, const SamplerOptions& options) {
  const std::vector<DdimStep>& steps = manifest.steps;
  SamplingPlan plan{manifest.sqrt_alpha_bar_noise, manifest.sqrt_one_minus_alpha_bar_noise, {}};
  size_t first = 0;
  if (options.start_timestep >= 0) {
    first = place_of(options.start_timestep, steps);
    plan.signal = std::sqrt(steps[first].alpha_bar);
    plan.spread = std::sqrt(1.0F - steps[first].alpha_bar);
  }
  if (options.start_noise == StartNoise::kNone) plan.spread = 0;
  const size_t available = steps.size() - first;
  const size_t count = options.steps == 0 ? available : static_cast<size_t>(options.steps);
  if (options.steps < 0 || count > available) {
    throw EngineError(code::kInvalidArgument,
                      "Expected 1 to " + std::to_string(available) + " for steps but received " + std::to_string(options.steps));
  }
  for (size_t i = 0; i < count; ++i) {
    const size_t index = first + i * available / count;
    plan.steps.push_back({static_cast<int64_t>(index), steps[index]});
  }
  if (count == available) return plan;  // nothing is skipped: a step goes where the bundle sends it
  for (size_t i = 0; i < count; ++i) {
    plan.steps[i].step.alpha_bar_prev = i + 1 < count ? plan.steps[i + 1].step.alpha_bar : steps.back().alpha_bar_prev;
  }
  return plan;
}

}  // namespace diad
