// Device and precision of a model.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <string>
#include <vector>

namespace diad {

// Parses "auto" (CUDA if available, otherwise CPU), "cpu", "cuda" or "cuda:N". Throws EngineError:
// ERR_DIAD_INVALID_ARGUMENT (another name) or ERR_DIAD_DEVICE_UNAVAILABLE (lists what is available).
[[nodiscard]] c10::Device parse_device(const std::string& name);

// Precision of the networks.
struct Precision {
  c10::ScalarType type = c10::kFloat;  // type of the tensors
  bool quantized = false;              // 8-bit integers in convolutions and linear layers, `type` elsewhere
};

// Parses "float32", "bfloat16", "float16" or "int8" (CPUs with AVX-512 VNNI). Throws EngineError:
// ERR_DIAD_INVALID_ARGUMENT (another name) or ERR_DIAD_DEVICE_UNAVAILABLE (int8 is not supported on the
// device).
[[nodiscard]] Precision parse_precision(const std::string& name, c10::Device device);

// Returns whether an environment variable is "1". Such variables enable experimental features.
[[nodiscard]] bool switched_on(const char* variable);

// Waits for the current stream of an accelerator. Does not synchronize the whole device, which is not allowed
// while another model captures a graph on it.
void wait_for(c10::Device device);

// Releases the accelerator memory that LibTorch caches but does not use, for other processes. Does nothing
// for the CPU.
void empty_device_cache(c10::Device device) noexcept;

// Returns the names of the CUDA devices that LibTorch sees; empty without CUDA.
[[nodiscard]] std::vector<std::string> cuda_devices();

}  // namespace diad
