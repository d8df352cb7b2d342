// Fuzzes preprocessing with frames of any size and content: resized to exactly size x size, normalized to
// finite numbers.
#include <ATen/ops/isfinite.h>

#include <cstdint>
#include <cstdlib>

#include "pipeline/preprocess.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  if (size < 4) return 0;
  constexpr uint32_t kChannels[] = {1, 3, 4};
  diad::Frame frame;
  frame.width = 1 + bytes[0];
  frame.height = 1 + bytes[1];
  frame.channels = kChannels[bytes[2] % 3];
  const uint32_t side = 16 + bytes[3] % 64;
  frame.pixels.resize(static_cast<size_t>(frame.width) * frame.height * frame.channels);
  for (size_t i = 0; i < frame.pixels.size(); ++i) frame.pixels[i] = bytes[i % size];
  const auto resized = diad::resize_rgb(diad::to_rgb(frame), frame.width, frame.height, side);
  if (resized.size() != size_t{3} * side * side) std::abort();
  diad::Manifest manifest;
  manifest.image_size = side;
  manifest.mean = {0.485F, 0.456F, 0.406F};
  manifest.std = {0.229F, 0.224F, 0.225F};
  const at::Tensor input = diad::normalized(resized, manifest);
  if (!at::isfinite(input).all().item<bool>()) std::abort();
  if (diad::denormalized(input[0], manifest) != resized) std::abort();
  return 0;
}
