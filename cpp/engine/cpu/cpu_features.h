// Instruction sets that decide how bfloat16 is computed.
#pragma once

#include <c10/core/ScalarType.h>

namespace diad {

struct CpuFeatures {
  bool avx512bw = false, avx512vl = false, avx512dq = false, avx512_bf16 = false, amx_bf16 = false;
};

// Features of this CPU that the operating system supports.
[[nodiscard]] const CpuFeatures& cpu_features();

// Returns whether LibTorch's oneDNN operators accept tensors of the type: always for float32, with AVX-512
// BW, VL and DQ for bfloat16. Otherwise they throw, and the layers fall back to LibTorch's generic operators.
[[nodiscard]] bool onednn_accepts(c10::ScalarType type, const CpuFeatures& features = cpu_features());

// Returns whether the CPU multiplies and adds in the type natively, so that rewriting a graph pays off:
// always for float32, with AMX or AVX512_BF16 for bfloat16. Implies onednn_accepts().
[[nodiscard]] bool cpu_multiplies(c10::ScalarType type, const CpuFeatures& features = cpu_features());

}  // namespace diad
