// An accelerator that computes nothing and minds a real one's rules for streams, events and the recording of
// graphs: what CUDA would refuse throws here, too.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <string>
#include <vector>

namespace fake_device {

inline const c10::Device kDevice(c10::kPrivateUse1, 0);

// Registers it with LibTorch, once, and forgets what was done before.
void begin();

// What streams were told, in the order: "stream 2", "2 after 0"; and of recordings "record on 2", "end", each
// with its pool.
[[nodiscard]] std::vector<std::string> told();

// What waiting for the whole device does: an error while anything is recorded, after which the recording
// cannot be ended.
void wait_for_all();

// A tensor there, of bytes that nobody can read.
[[nodiscard]] at::Tensor tensor();

}  // namespace fake_device
