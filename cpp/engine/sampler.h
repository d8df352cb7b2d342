// What the sampler starts from and which of the bundle's steps it evaluates.
#pragma once

#include <cstdint>
#include <vector>

#include "bundle.h"

namespace diad {

enum class StartNoise { kGaussian, kNone };

// What is changed of the published sampler; the defaults change nothing.
struct SamplerOptions {
  int64_t steps = 0;            // evaluations of the denoiser, spread evenly over the timesteps from the start on; 0: all of them
  int64_t start_timestep = -1;  // one of the bundle's: noise and first evaluation are there; -1: as the bundle's manifest says
  StartNoise start_noise = StartNoise::kGaussian;  // none: the start is the latent, only scaled by sqrt(alpha_bar)

  bool operator==(const SamplerOptions&) const = default;
};

struct SamplerStep {
  int64_t index = 0;  // into the manifest's steps
  DdimStep step{};
};

// x_start = signal * z + spread * noise, then the steps in order of evaluation.
struct SamplingPlan {
  double signal = 0, spread = 0;
  std::vector<SamplerStep> steps;
};

// The start and the steps that the options choose from a bundle's. Throws EngineError ERR_DIAD_INVALID_ARGUMENT for a timestep that is not
// the bundle's, or more steps than there are.
[[nodiscard]] SamplingPlan plan_sampling(const Manifest& manifest, const SamplerOptions& options);

}  // namespace diad
