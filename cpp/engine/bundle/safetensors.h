// Reads and writes safetensors files: the header's length, a JSON header, then the tensors' bytes.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace diad {

struct Safetensors {
  std::map<std::string, at::Tensor> tensors;  // on the CPU, contiguous, half (F16) or float32 (F32)
  std::map<std::string, std::string> metadata;
};

// Parses a file's bytes. Tensors must lie side by side and cover everything behind the header. `file` is the
// name in errors. Throws EngineError: ERR_DIAD_BUNDLE_CORRUPT (the structure is damaged),
// ERR_DIAD_BUNDLE_INVALID (another type than F16 and F32).
[[nodiscard]] Safetensors parse_safetensors(std::span<const uint8_t> bytes, const std::string& file);

// A file's bytes; the same for the same content. Throws EngineError ERR_DIAD_INVALID_ARGUMENT for another
// type than half and float32.
[[nodiscard]] std::vector<uint8_t> serialize_safetensors(const Safetensors& content);

}  // namespace diad
