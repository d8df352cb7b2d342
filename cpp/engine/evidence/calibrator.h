// Learns what normal images look like: collects their maps and vectors, then writes a normality file and scores each image by the others.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "bundle/bundle.h"
#include "pipeline/anomaly_map.h"

namespace diad {

// What an image is used for (docs/evidence.md, "Calibration").
struct CalibrationRoles {
  bool in_memory = false;      // its vectors may be chosen for the memory
  bool in_statistics = false;  // its maps count for mean and spread, and it is scored
};

// An image judged as one that calibration has not seen: by a memory without its vectors and by statistics without its maps.
struct UnseenScore {
  int64_t index;
  double score, reconstruction, memory;
  double peak;  // maximum of the blurred map
};

struct Calibration {
  std::vector<uint8_t> normality;   // the file's bytes
  std::vector<UnseenScore> images;  // of the images in the statistics, by index: judged by the entry of their class
};

class Calibrator {
 public:
  // Of a class, and of all images together, at most so many are used; of more, an evenly spaced choice by index.
  static constexpr int64_t kMostImages = 1000;

  // `threads` share in finish(). Throws EngineError ERR_DIAD_INVALID_ARGUMENT where the manifest has no evidence.
  Calibrator(Manifest manifest, int threads);

  // Adds an image, from any thread; one that was added with the same index before is replaced. distances [H_i, W_i], embedding [D, G, G].
  // Copies what its roles need. Throws EngineError ERR_DIAD_INTERNAL where numbers are not finite in half precision.
  void add(int64_t index, const std::string& class_name, CalibrationRoles roles, const Features& distances, const at::Tensor& embedding);

  // The outcome for what was added; the order of arrival makes no difference. Takes about two products of each image with the memory. Asks
  // check_cancelled. Throws EngineError ERR_DIAD_INVALID_ARGUMENT where a class has fewer than two images in its statistics, or vectors
  // of fewer than two images.
  [[nodiscard]] Calibration finish() const;

 private:
  struct Image;
  using Images = std::vector<std::shared_ptr<const Image>>;  // by index
  class Learner;

  [[nodiscard]] Images added() const;

  const Manifest manifest_;
  const int threads_;
  mutable std::mutex mutex_;
  std::map<int64_t, std::shared_ptr<const Image>> images_;  // guarded by mutex_
};

// Where an image's maps and vectors go.
struct CalibrationSink {
  std::shared_ptr<Calibrator> calibrator;  // null: nowhere
  int64_t index = 0;
  CalibrationRoles roles;
};

}  // namespace diad
