// GroupNorm fused with its neighbors for channels-last half-precision images, computed by custom device
// kernels (kernels/group_norm.cu). LibTorch's operator returns contiguous images, which the next convolution
// would have to convert back to channels-last.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/custom_class.h>

#include <array>
#include <functional>
#include <optional>
#include <vector>

#include "cpu/group_norm.h"

namespace diad {

// A kernel launch with its grid and block sizes.
struct KernelLaunch {
  const char* kernel;
  std::array<unsigned, 3> grid;
  std::array<unsigned, 2> block;
  unsigned shared_bytes;
  std::vector<void*> arguments;  // pointers to the arguments
};

// Queues a kernel on the current stream of the launcher's device.
using KernelLauncher = std::function<void(const KernelLaunch&)>;

// Returns the CUDA source of the kernels, for compile_cuda (cuda/nvrtc.h).
[[nodiscard]] const char* group_norm_source();

// Returns a launcher for the kernels, compiled and checked once per device. Empty, with a logged warning, if
// they are not available.
[[nodiscard]] KernelLauncher group_norm_launcher(c10::Device device);

class DeviceGroupNorm final : public torch::CustomClassHolder {
 public:
  // weight, bias [C] in float16 or bfloat16. An empty `launch` falls back to LibTorch's operators.
  DeviceGroupNorm(at::Tensor weight, at::Tensor bias, const GroupNormShape& shape, KernelLauncher launch);

  // Same as group_norm (cpu/group_norm.h); x has the weight's type and device. The result of an image does
  // not depend on the rest of the batch. Unsupported types and channel counts fall back to LibTorch's
  // operators.
  [[nodiscard]] at::Tensor run(const at::Tensor& x, const std::optional<at::Tensor>& shift) const;

 private:
  [[nodiscard]] at::Tensor fallback(const at::Tensor& x, const std::optional<at::Tensor>& shift) const;

  at::Tensor weight_, bias_;
  GroupNormShape shape_;
  KernelLauncher launch_;
  bool fits_;
};

// Runs the kernels on a few shapes. Throws std::runtime_error if the results differ from those of LibTorch's
// operators.
void check_group_norm(const KernelLauncher& launch, c10::Device device);

}  // namespace diad
