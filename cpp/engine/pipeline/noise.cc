#include "pipeline/noise.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/randn.h>

namespace diad {

Noise draw_noise(uint64_t seed, const Manifest& manifest) {
  const at::Generator generator = at::detail::createCPUGenerator(seed);
  const std::array<int64_t, 4> shape{1, manifest.latent_channels, manifest.latent_size, manifest.latent_size};
  at::Tensor posterior = at::randn(shape, generator, at::kFloat);
  at::Tensor forward = at::randn(shape, generator, at::kFloat);
  return {std::move(posterior), std::move(forward)};
}

at::Tensor sample_posterior(const at::Tensor& moments, const at::Tensor& noise, const Manifest& manifest) {
  const std::vector<at::Tensor> parts = moments.chunk(2, 1);
  const at::Tensor std = (0.5 * parts[1].clamp(manifest.logvar_min, manifest.logvar_max)).exp();
  return manifest.latent_scale * (parts[0] + std * noise);
}

}  // namespace diad
