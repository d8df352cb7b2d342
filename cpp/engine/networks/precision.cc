#include "networks/precision.h"

#include "cpu/int8_conv.h"
#include "support/engine_error.h"

namespace diad {

Precision parse_precision(const std::string& name, c10::Device device) {
  if (name == "float32") return {c10::kFloat};
  if (name == "bfloat16") return {c10::kBFloat16};
  if (name == "float16") return {c10::kHalf};
  if (name != "int8") {
    throw EngineError(code::kInvalidArgument,
                      "Expected float32, bfloat16, float16 or int8 for precision but received " + name);
  }
  if (!device.is_cpu())
    throw EngineError(code::kDeviceUnavailable,
                      "The precision int8 is supported on the CPU only; the device is " + device.str());
  if (!QuantizedConv::available()) {
    throw EngineError(code::kDeviceUnavailable,
                      "The precision int8 needs a CPU with AVX-512 VNNI; use float32 or bfloat16");
  }
  return {c10::kFloat, true};
}

}  // namespace diad
