// Statistics of normal images per class, as written by a calibration: normality.safetensors
// (docs/design/evidence.md).
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "bundle/bundle.h"
#include "evidence/anomaly_map.h"
#include "evidence/evidence.h"
#include "evidence/nearest_vectors.h"

namespace diad {

// Content of the file for one class, or for all images.
struct NormalClass {
  at::Tensor memory;   // [M, D] half
  NormalMaps maps;     // [H_i, W_i]
  int64_t images = 0;  // in the statistics
};
// "": all images, present only if some images have no class, or if there is a single class.
using NormalClasses = std::map<std::string, NormalClass>;

// Returns the bytes of normality.safetensors.
[[nodiscard]] std::vector<uint8_t> serialize_normality(const NormalClasses& classes);

// Parses and checks a normality file. `file` is its name in messages. The manifest must have evidence. Throws
// EngineError: ERR_DIAD_BUNDLE_CORRUPT (damaged safetensors file) or ERR_DIAD_BUNDLE_INVALID (another kind of
// file, or sizes that do not match the manifest).
[[nodiscard]] NormalClasses parse_normality(std::span<const uint8_t> bytes, const std::string& file,
                                            const Manifest& manifest);

// Returns the vectors [G * G, D], contiguous, of an embedding [D, G, G] with any strides.
[[nodiscard]] at::Tensor vectors_of(const at::Tensor& embedding);

// The classes on a device, ready to judge images. Not thread-safe.
class Normality {
 public:
  Normality(const NormalClasses& classes, const Manifest& manifest, c10::Device device);

  struct Judgement {
    std::vector<std::string> classes;  // whose entry judged the image
    Evidence evidence;
    at::Tensor memory_distance;  // [N, G, G] float32
  };

  // Judges N images from distances [N, H_i, W_i] and embedding [N, D, G, G], each by the entry of its class.
  // An unknown class, "" included, selects the entry whose memory is nearest on average. Throws EngineError
  // ERR_DIAD_BUNDLE_INVALID if the sizes of the maps differ from the file's.
  [[nodiscard]] Judgement judge(const Features& distances, const at::Tensor& embedding,
                                std::span<const std::string> classes);

 private:
  struct Entry {
    NearestVectors memory;
    NearestVectors sample;  // of the memory, to select a class
    NormalMaps maps;
  };
  using Entries = std::map<std::string, Entry>;
  [[nodiscard]] Entries::iterator select(const std::string& name, const at::Tensor& vectors);

  Entries entries_;
  EvidenceCombiner combine_;
};

}  // namespace diad
