// An accelerator that computes nothing but enforces a real one's rules for streams, events and graph capture:
// operations that CUDA would reject throw.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <string>
#include <vector>

namespace fake_device {

inline const c10::Device kDevice(c10::kPrivateUse1, 0);

// Registers the device with LibTorch once and resets its state.
void begin();

// Returns the operations in order: "stream 2", "2 after 0", and for captures "record on 2" and "end", each
// with its pool.
[[nodiscard]] std::vector<std::string> told();

// Synchronizes the whole device: throws during a capture, which can then not be completed.
void wait_for_all();

// Returns a tensor on the device whose data cannot be read.
[[nodiscard]] at::Tensor tensor();

}  // namespace fake_device
