// Seeded noise: the same numbers as torch.Generator().manual_seed(seed) gives in Python, whatever the batch.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "bundle/bundle.h"

namespace diad {

struct Noise {
  at::Tensor posterior;  // [1, C, s, s] float32, CPU: drawn first
  at::Tensor forward;    // [1, C, s, s] float32, CPU: drawn second
};

// Draws both from one CPU generator seeded with the image's own seed.
[[nodiscard]] Noise draw_noise(uint64_t seed, const Manifest& manifest);

// The posterior's sample, scaled: scale * (mean + exp(0.5 * clamp(logvar)) * noise).
// moments [N, 2C, s, s] float32, noise [N, C, s, s] -> z [N, C, s, s].
[[nodiscard]] at::Tensor sample_posterior(const at::Tensor& moments, const at::Tensor& noise,
                                          const Manifest& manifest);

}  // namespace diad
