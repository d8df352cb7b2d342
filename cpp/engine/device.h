// Where and in which precision a model runs.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <string>
#include <vector>

namespace diad {

// "auto" (CUDA when there is one, else CPU), "cpu", "cuda", "cuda:N".
// Throws EngineError: ERR_DIAD_INVALID_ARGUMENT (another word), ERR_DIAD_DEVICE_UNAVAILABLE (says what there is).
[[nodiscard]] c10::Device parse_device(const std::string& name);

// "float32", "bfloat16", "float16". Throws EngineError ERR_DIAD_INVALID_ARGUMENT.
[[nodiscard]] c10::ScalarType parse_precision(const std::string& name);

// Names of the CUDA devices LibTorch sees; empty without CUDA.
[[nodiscard]] std::vector<std::string> cuda_devices();

}  // namespace diad
