// Reads and writes safetensors files: length of the header, JSON header, tensor data.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace diad {

struct Safetensors {
  std::map<std::string, at::Tensor> tensors;  // CPU, contiguous, half (F16) or float32 (F32)
  std::map<std::string, std::string> metadata;
};

// Parses the bytes of a file. The tensors must cover the data section without gaps or overlaps. `file` is the
// name in messages. Throws EngineError: ERR_DIAD_BUNDLE_CORRUPT (damaged structure) or
// ERR_DIAD_BUNDLE_INVALID (a type other than F16 and F32).
[[nodiscard]] Safetensors parse_safetensors(std::span<const uint8_t> bytes, const std::string& file);

// Returns the bytes of a file; equal content gives equal bytes. Throws EngineError ERR_DIAD_INVALID_ARGUMENT
// for types other than half and float32.
[[nodiscard]] std::vector<uint8_t> serialize_safetensors(const Safetensors& content);

}  // namespace diad
