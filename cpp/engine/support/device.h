// Devices: names, waiting, cached memory.
#pragma once

#include <c10/core/Device.h>

#include <string>
#include <vector>

namespace diad {

// Parses "auto" (CUDA if available, otherwise CPU), "cpu", "cuda" or "cuda:N". Throws EngineError:
// ERR_DIAD_INVALID_ARGUMENT (another name) or ERR_DIAD_DEVICE_UNAVAILABLE (lists what is available).
[[nodiscard]] c10::Device parse_device(const std::string& name);

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
