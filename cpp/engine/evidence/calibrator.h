// Learns the statistics of normal images: collects their maps and vectors, writes a normality file and scores
// each image by the others.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "bundle/bundle.h"
#include "evidence/anomaly_map.h"

namespace diad {

// How a calibration image is used (docs/design/evidence.md, "Calibration").
struct CalibrationRoles {
  bool in_memory = false;      // its vectors can be selected for the memory
  bool in_statistics = false;  // its maps count towards mean and spread, and it is scored
};

// Leave-one-out score of an image: judged by a memory without its vectors and by statistics without its maps.
struct UnseenScore {
  int64_t index;
  double score, reconstruction, memory;
  double peak;  // maximum of the blurred map
};

struct Calibration {
  std::vector<uint8_t> normality;  // the file's bytes
  // Images in the statistics, by index, judged by the entry of their class.
  std::vector<UnseenScore> images;
};

class Calibrator {
 public:
  // Maximum number of images used for a class, and for the entry of all images. Of more images, an evenly
  // spaced subset by index is used.
  static constexpr int64_t kMostImages = 1000;

  // finish() runs on `threads` threads. Throws EngineError ERR_DIAD_INVALID_ARGUMENT if the manifest has no
  // evidence.
  Calibrator(Manifest manifest, int threads);

  // Adds an image, from any thread; replaces an image with the same index. distances [H_i, W_i], embedding
  // [D, G, G]. Copies what its roles need. Throws EngineError ERR_DIAD_INTERNAL if a value is not finite in
  // half precision.
  void add(int64_t index, const std::string& class_name, CalibrationRoles roles, const Features& distances,
           const at::Tensor& embedding);

  // Computes the calibration from the images added so far; the order in which they were added does not
  // matter. Costs about two products of each image with the memory. Calls check_cancelled(). Throws
  // EngineError ERR_DIAD_INVALID_ARGUMENT if a class has fewer than two images in its statistics or in its
  // memory.
  [[nodiscard]] Calibration finish() const;

 private:
  struct Image;
  using Images = std::vector<std::shared_ptr<const Image>>;  // ordered by index
  class Learner;

  [[nodiscard]] Images added() const;

  const Manifest manifest_;
  const int threads_;
  mutable std::mutex mutex_;
  std::map<int64_t, std::shared_ptr<const Image>> images_;  // guarded by mutex_
};

// Destination of an image's maps and vectors.
struct CalibrationSink {
  std::shared_ptr<Calibrator> calibrator;  // null: discard them
  int64_t index = 0;
  CalibrationRoles roles;
};

}  // namespace diad
