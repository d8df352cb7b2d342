// Seeded noise, identical to torch.Generator().manual_seed(seed) in Python and independent of the batch.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "bundle/bundle.h"

namespace diad {

struct Noise {
  at::Tensor posterior;  // [1, C, s, s] float32, CPU; drawn first
  at::Tensor forward;    // [1, C, s, s] float32, CPU; drawn second
};

// Draws both tensors from one CPU generator seeded with `seed`.
[[nodiscard]] Noise draw_noise(uint64_t seed, const Manifest& manifest);

// Samples the posterior and scales it: scale * (mean + exp(0.5 * clamp(logvar)) * noise).
// moments [N, 2C, s, s] float32, noise [N, C, s, s] -> z [N, C, s, s].
[[nodiscard]] at::Tensor sample_posterior(const at::Tensor& moments, const at::Tensor& noise,
                                          const Manifest& manifest);

}  // namespace diad
