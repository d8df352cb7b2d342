// Where and in which precision a model runs.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <string>
#include <vector>

namespace diad {

// "auto" (CUDA when there is one, else CPU), "cpu", "cuda", "cuda:N".
// Throws EngineError: ERR_DIAD_INVALID_ARGUMENT (another word), ERR_DIAD_DEVICE_UNAVAILABLE (says what there
// is).
[[nodiscard]] c10::Device parse_device(const std::string& name);

// What networks compute in.
struct Precision {
  c10::ScalarType type = c10::kFloat;  // of the tensors
  bool quantized = false;  // convolutions and linear layers multiply 8-bit integers; all else in `type`
};

// "float32", "bfloat16", "float16", and "int8" for CPUs with AVX-512 VNNI. Throws EngineError:
// ERR_DIAD_INVALID_ARGUMENT (another word), ERR_DIAD_DEVICE_UNAVAILABLE (int8 where the device does not
// multiply so).
[[nodiscard]] Precision parse_precision(const std::string& name, c10::Device device);

// Whether an environment variable is "1": what has yet to be tried on devices is asked for by name.
[[nodiscard]] bool switched_on(const char* variable);

// Waits for what the current stream of an accelerator has been given: for the stream alone, because a device
// must not be waited for while another model's work on it is recorded.
void wait_for(c10::Device device);

// Gives what LibTorch keeps of an accelerator's memory for later, and nobody uses, back to the device, for
// other processes. Nothing for the CPU.
void empty_device_cache(c10::Device device) noexcept;

// Names of the CUDA devices LibTorch sees; empty without CUDA.
[[nodiscard]] std::vector<std::string> cuda_devices();

}  // namespace diad
