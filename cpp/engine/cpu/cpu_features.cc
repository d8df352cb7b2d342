#include "cpu/cpu_features.h"

namespace diad {

namespace {

CpuFeatures detected() {
  CpuFeatures found;
#if defined(__x86_64__) && defined(__GNUC__)
  found.avx512bw = __builtin_cpu_supports("avx512bw");
  found.avx512vl = __builtin_cpu_supports("avx512vl");
  found.avx512dq = __builtin_cpu_supports("avx512dq");
  found.avx512_bf16 = __builtin_cpu_supports("avx512bf16");
  found.amx_bf16 = __builtin_cpu_supports("amx-bf16");
#endif
  return found;
}

}  // namespace

const CpuFeatures& cpu_features() {
  static const CpuFeatures features = detected();
  return features;
}

bool onednn_accepts(c10::ScalarType type, const CpuFeatures& features) {
  return type == c10::kFloat ||
         (type == c10::kBFloat16 && features.avx512bw && features.avx512vl && features.avx512dq);
}

bool cpu_multiplies(c10::ScalarType type, const CpuFeatures& features) {
  if (type == c10::kBFloat16)
    return (features.amx_bf16 || features.avx512_bf16) && onednn_accepts(type, features);
  return type == c10::kFloat;
}

}  // namespace diad
