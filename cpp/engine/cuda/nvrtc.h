// Compiles custom CUDA kernels at run time. The engine links neither NVRTC, which LibTorch's CUDA build
// includes, nor the driver: it finds both at run time.
#pragma once

#include <c10/core/Device.h>

#include <span>
#include <string>
#include <vector>

#include "cuda/cuda_group_norm.h"  // KernelLauncher

namespace diad {

// Compiles CUDA C++ source to machine code for an architecture such as "sm_90". `nvrtc` is the path of the
// library; empty: LibTorch's or the system's. Throws std::runtime_error if NVRTC is missing or reports an
// error.
[[nodiscard]] std::vector<char> compile_cuda(const std::string& source, const std::string& architecture,
                                             const std::string& nvrtc = {});

// Returns a launcher for kernels of the source on a CUDA device. Launches go to its current stream, and the
// code stays loaded until the process ends. Throws std::runtime_error like compile_cuda, and if the driver or
// a kernel is missing. The launcher throws if a launch fails.
[[nodiscard]] KernelLauncher cuda_launcher(c10::Device device, const std::string& source,
                                           std::span<const char* const> kernels);

}  // namespace diad
