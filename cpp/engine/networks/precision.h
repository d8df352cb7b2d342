// Precision of a model's networks.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <string>

namespace diad {

// Precision of the networks.
struct Precision {
  c10::ScalarType type = c10::kFloat;  // type of the tensors
  bool quantized = false;              // 8-bit integers in convolutions and linear layers, `type` elsewhere
};

// Parses "float32", "bfloat16", "float16" or "int8" (CPUs with AVX-512 VNNI). Throws EngineError:
// ERR_DIAD_INVALID_ARGUMENT (another name) or ERR_DIAD_DEVICE_UNAVAILABLE (int8 is not supported on the
// device).
[[nodiscard]] Precision parse_precision(const std::string& name, c10::Device device);

}  // namespace diad
