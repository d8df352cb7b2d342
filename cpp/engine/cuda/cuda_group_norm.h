// GroupNorm with what stands around it, for channels-last half-precision images on a device that runs kernels
// of our own (kernels/group_norm.cu): LibTorch's returns contiguous images, which the next convolution would
// have to lay out again.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/custom_class.h>

#include <array>
#include <functional>
#include <optional>
#include <vector>

#include "cpu/group_norm.h"

namespace diad {

// One kernel on a grid of blocks of threads.
struct KernelLaunch {
  const char* kernel;
  std::array<unsigned, 3> grid;
  std::array<unsigned, 2> block;
  unsigned shared_bytes;
  std::vector<void*> arguments;  // where each argument lies
};

// Puts a kernel in the queue of the current stream of the device that the launcher was made for.
using KernelLauncher = std::function<void(const KernelLaunch&)>;

// The kernels' text, for compile_cuda (cuda_program.h).
[[nodiscard]] const char* group_norm_source();

// A launcher of the kernels, compiled and checked once for each device. Empty, after a warning that says why,
// where they cannot be had.
[[nodiscard]] KernelLauncher group_norm_launcher(c10::Device device);

class DeviceGroupNorm final : public torch::CustomClassHolder {
 public:
  // weight, bias [C] in float16 or bfloat16. `launch` may be empty: then LibTorch's operators do the work.
  DeviceGroupNorm(at::Tensor weight, at::Tensor bias, const GroupNormShape& shape, KernelLauncher launch);

  // As group_norm (group_norm.h); x in the weight's type, on its device. An image's result does not depend on
  // the others of its batch. Types and numbers of channels that the kernels are not for go through LibTorch's
  // operators.
  [[nodiscard]] at::Tensor run(const at::Tensor& x, const std::optional<at::Tensor>& shift) const;

 private:
  [[nodiscard]] at::Tensor fallback(const at::Tensor& x, const std::optional<at::Tensor>& shift) const;

  at::Tensor weight_, bias_;
  GroupNormShape shape_;
  KernelLauncher launch_;
  bool fits_;
};

// Runs the kernels on a few shapes. Throws std::runtime_error where they give something else than LibTorch's
// operators do.
void check_group_norm(const KernelLauncher& launch, c10::Device device);

}  // namespace diad
