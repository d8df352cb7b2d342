// What normal images of each class look like, as calibration wrote it: normality.safetensors (docs/evidence.md).
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
#include "evidence/evidence.h"
#include "evidence/nearest_vectors.h"
#include "pipeline/anomaly_map.h"

namespace diad {

// The file's content for one class, or for all images together.
struct NormalClass {
  at::Tensor memory;   // [M, D] half
  NormalMaps maps;     // [H_i, W_i]
  int64_t images = 0;  // in the statistics
};
using NormalClasses = std::map<std::string, NormalClass>;  // "": all images, where some belong to no class

// The bytes of normality.safetensors.
[[nodiscard]] std::vector<uint8_t> serialize_normality(const NormalClasses& classes);

// Throws EngineError, naming `file`: ERR_DIAD_BUNDLE_CORRUPT (no intact safetensors file), ERR_DIAD_BUNDLE_INVALID (of another kind, or its
// sizes are not those of the manifest, which must have evidence).
[[nodiscard]] NormalClasses parse_normality(std::span<const uint8_t> bytes, const std::string& file, const Manifest& manifest);

// Image [D, G, G], any strides -> its vectors [G * G, D], contiguous.
[[nodiscard]] at::Tensor vectors_of(const at::Tensor& embedding);

// The classes on a device, ready to judge images. Not for several threads at a time.
class Normality {
 public:
  Normality(const NormalClasses& classes, const Manifest& manifest, c10::Device device);

  struct Judgement {
    std::vector<std::string> classes;  // whose entry judged the image
    Evidence evidence;
    at::Tensor memory_distance;  // [N, G, G] float32
  };

  // Judges N images by distances [N, H_i, W_i] and embedding [N, D, G, G], each by the entry of its class. A name without an entry, ""
  // included, selects the class whose memory is nearest on average. Throws EngineError ERR_DIAD_BUNDLE_INVALID when the sizes of the
  // maps differ from the file's.
  [[nodiscard]] Judgement judge(const Features& distances, const at::Tensor& embedding, std::span<const std::string> classes);

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
