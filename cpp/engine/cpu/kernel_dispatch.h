// Selects the kernels for this CPU's instruction set.
#pragma once

#include "cpu/kernels/depthwise_kernel.h"
#include "cpu/kernels/direct_conv_kernel.h"
#include "cpu/kernels/int8_kernel.h"
#include "cpu/kernels/rowwise_kernels.h"
#include "cpu/kernels/winograd_kernel.h"

namespace diad {

struct CpuKernels {
  kernels::ConvKernel convolution;
  kernels::DepthwiseKernel depthwise;
  kernels::WinogradKernels winograd;
  kernels::RowKernels rows;
  const kernels::QuantizedKernels* quantized;  // null without AVX-512 VNNI
};

// Returns null without AVX2 (with FMA and F16C) or AVX-512.
[[nodiscard]] const CpuKernels* cpu_kernels();

// Floating-point operations below which a second thread costs more than it saves.
inline constexpr double kWorkOfAThread = 1e6;

}  // namespace diad
