#include "support/device.h"

#include <ATen/Context.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#if __has_include(<c10/core/CachingDeviceAllocator.h>)
#include <c10/core/CachingDeviceAllocator.h>
#define DIAD_HAS_DEVICE_ALLOCATORS 1
#endif

#include <charconv>
#include <cstdlib>
#include <exception>
#include <string_view>

#include "support/engine_error.h"
#include "support/error_translation.h"

namespace diad {

namespace {

// Returns LibTorch's reason for not using CUDA, which initialization reports.
std::string why_no_cuda() {
  try {
    at::globalContext().lazyInitDevice(c10::kCUDA);
  } catch (const std::exception& error) {
    return " (" + describe_failure(error).message + ")";
  }
  return "";
}

int cuda_count() { return at::hasCUDA() ? static_cast<int>(at::detail::getCUDAHooks().deviceCount()) : 0; }

}  // namespace

c10::Device parse_device(const std::string& name) {
  const int count = cuda_count();
  if (name == "cpu" || (name == "auto" && count == 0)) return c10::Device(c10::kCPU);
  if (name == "auto") return {c10::kCUDA, 0};
  int index = 0;
  if (name != "cuda") {
    const bool prefixed = name.starts_with("cuda:");
    const char* first = name.data() + (prefixed ? 5 : 0);
    const char* last = name.data() + name.size();
    const auto [end, error] = std::from_chars(first, last, index);
    if (!prefixed || error != std::errc() || end != last || index < 0) {
      throw EngineError(code::kInvalidArgument,
                        "Expected auto, cpu, cuda or cuda:N for device but received " + name);
    }
  }
  if (index >= count) {
    const std::string available =
        count == 0 ? "this LibTorch sees no CUDA device" + why_no_cuda() + "; use cpu or auto"
                   : "there are " + std::to_string(count) + " CUDA devices, numbered from 0";
    throw EngineError(code::kDeviceUnavailable, "The device " + name + " is not available: " + available);
  }
  return {c10::kCUDA, static_cast<c10::DeviceIndex>(index)};
}

bool switched_on(const char* variable) {
  const char* const value = std::getenv(variable);
  return value != nullptr && std::string_view(value) == "1";
}

void wait_for(c10::Device device) {
  if (device.is_cpu()) return;
  const c10::impl::VirtualGuardImpl implementation(device.type());
  implementation.synchronizeStream(implementation.getStream(device));
}

void empty_device_cache([[maybe_unused]] c10::Device device) noexcept {
#ifdef DIAD_HAS_DEVICE_ALLOCATORS
  if (device.is_cpu()) return;
  try {
    c10::getDeviceAllocator(device.type())->emptyCache();
  } catch (const std::exception&) {  // another model is capturing a graph, or the device is lost
  }
#endif
}

std::vector<std::string> cuda_devices() {
  std::vector<std::string> names;
  for (int i = 0; i < cuda_count(); ++i) names.push_back("cuda:" + std::to_string(i));
  return names;
}

}  // namespace diad
