// Tests the bfloat16 checks with given CPU features.
#include "cpu/cpu_features.h"

#include "support.h"

namespace {

using namespace diad;

const CpuFeatures kAvx2{}, kAvx512{.avx512bw = true, .avx512vl = true, .avx512dq = true};

}  // namespace

TEST_CASE("oneDNN accepts bfloat16 on a CPU with AVX-512 BW, VL and DQ only") {
  CHECK(onednn_accepts(c10::kBFloat16, kAvx512));
  CHECK(!onednn_accepts(c10::kBFloat16, kAvx2));
  for (bool CpuFeatures::* missing :
       {&CpuFeatures::avx512bw, &CpuFeatures::avx512vl, &CpuFeatures::avx512dq}) {
    CpuFeatures features = kAvx512;
    features.*missing = false;
    CHECK(!onednn_accepts(c10::kBFloat16, features));
  }
  CHECK(onednn_accepts(c10::kFloat, kAvx2));
  CHECK(!onednn_accepts(c10::kHalf, kAvx512));
}

TEST_CASE("graphs are rewritten in bfloat16 only with AVX512_BF16 or AMX, and only if oneDNN accepts it") {
  CHECK(!cpu_multiplies(c10::kBFloat16, kAvx2));
  CHECK(!cpu_multiplies(c10::kBFloat16, kAvx512));
  for (bool CpuFeatures::* present : {&CpuFeatures::avx512_bf16, &CpuFeatures::amx_bf16}) {
    CpuFeatures features = kAvx512;
    features.*present = true;
    CHECK(cpu_multiplies(c10::kBFloat16, features));
    features.avx512dq = false;  // a virtual machine can hide it
    CHECK(!cpu_multiplies(c10::kBFloat16, features));
  }
  CHECK(cpu_multiplies(c10::kFloat, kAvx2));
  CHECK(!cpu_multiplies(c10::kHalf, kAvx512));
}
