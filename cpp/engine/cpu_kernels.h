// The inner loops for this machine's instruction set.
#pragma once

#include "kernels/depthwise_kernel.h"
#include "kernels/direct_conv_kernel.h"
#include "kernels/quantised_kernel.h"
#include "kernels/row_kernel.h"
#include "kernels/winograd_kernel.h"

namespace diad {

struct CpuKernels {
  kernels::ConvKernel convolution;
  kernels::DepthwiseKernel depthwise;
  kernels::WinogradKernels winograd;
  kernels::RowKernels rows;
  const kernels::QuantisedKernels* quantised;  // null without AVX-512 VNNI
};

// Null without AVX2 (with FMA and F16C) or AVX-512.
[[nodiscard]] const CpuKernels* cpu_kernels();

// Floating-point operations below which a second thread costs more than it brings.
inline constexpr double kWorkOfAThread = 1e6;

}  // namespace diad
