#include "cpu/kernel_dispatch.h"

#include <ATen/Version.h>

#include <optional>
#include <string>

namespace diad {

namespace {

#ifdef DIAD_X86_KERNELS
const kernels::QuantizedKernels* quantized_kernels() {
#ifdef __GNUC__
  if (__builtin_cpu_supports("avx512vnni")) return &kernels::quantized_vnni;
#endif
  return nullptr;
}
#endif

std::optional<CpuKernels> best_kernels() {
#ifdef DIAD_X86_KERNELS
  const std::string capability = at::get_cpu_capability();
  if (capability.starts_with("AVX512")) {
    return CpuKernels{kernels::direct_conv_avx512, kernels::depthwise_conv_avx512, kernels::winograd_avx512,
                      kernels::rows_avx512, quantized_kernels()};
  }
  if (capability == "AVX2")
    return CpuKernels{kernels::direct_conv_avx2, kernels::depthwise_conv_avx2, kernels::winograd_avx2,
                      kernels::rows_avx2, nullptr};
#endif
  return std::nullopt;
}

}  // namespace

const CpuKernels* cpu_kernels() {
  static const std::optional<CpuKernels> best = best_kernels();
  return best ? &*best : nullptr;
}

}  // namespace diad
