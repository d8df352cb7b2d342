// CUDA kernels of our own, compiled on the machine that runs them: NVRTC comes with LibTorch's CUDA build,
// and the engine, which links neither it nor the driver, finds both at run time.
#pragma once

#include <c10/core/Device.h>

#include <span>
#include <string>
#include <vector>

#include "cuda/cuda_group_norm.h"  // KernelLauncher

namespace diad {

// The machine code of a CUDA C++ text for an architecture such as "sm_90". `nvrtc` names the library; empty:
// LibTorch's, or the system's. Throws std::runtime_error: no NVRTC, or what it says about the text.
[[nodiscard]] std::vector<char> compile_cuda(const std::string& source, const std::string& architecture,
                                             const std::string& nvrtc = {});

// A launcher of the text's kernels on a CUDA device, in the order of its current stream; the code stays
// loaded while the process lives. Throws std::runtime_error: as compile_cuda, or no driver, or a kernel that
// the text does not have. Its calls throw where a launch fails.
[[nodiscard]] KernelLauncher cuda_launcher(c10::Device device, const std::string& source,
                                           std::span<const char* const> kernels);

}  // namespace diad
