// Instruction sets that decide which code computes in bfloat16.
#pragma once

#include <c10/core/ScalarType.h>

namespace diad {

struct CpuFeatures {
  bool avx512bw = false, avx512vl = false, avx512dq = false, avx512_bf16 = false, amx_bf16 = false;
};

// Features of this CPU that its operating system supports.
[[nodiscard]] const CpuFeatures& cpu_features();

// Whether LibTorch's oneDNN operators accept tensors of that type: float32 always, bfloat16 with AVX-512 BW,
// VL and DQ. Without them these operators throw, so the layers call LibTorch's plain operators instead.
[[nodiscard]] bool onednn_accepts(c10::ScalarType type, const CpuFeatures& features = cpu_features());

// Whether the CPU multiplies and adds in that type, so that rewriting a graph pays off: float32 always,
// bfloat16 with AMX or AVX512_BF16. Implies onednn_accepts().
[[nodiscard]] bool cpu_multiplies(c10::ScalarType type, const CpuFeatures& features = cpu_features());

}  // namespace diad
