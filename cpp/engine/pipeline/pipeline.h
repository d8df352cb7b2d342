// Scores a batch: from frames to results.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "bundle/bundle.h"
#include "evidence/calibrator.h"
#include "evidence/normality.h"
#include "networks/networks.h"
#include "pipeline/preprocess.h"

namespace diad {

// Outputs requested for an image.
struct Wanted {
  bool map = true;
  bool reconstruction = false;
  bool stages = false;
};

struct ImageRequest {
  const Frame* frame = nullptr;
  uint64_t seed = 0;
  Wanted wanted;
  std::string class_name = {};       // class whose normality entry judges the image
  CalibrationSink calibration = {};  // receives the image's maps and vectors
};

// Scores of each kind of evidence on its own.
struct EvidenceScores {
  double reconstruction = 0, memory = 0;
  std::string class_name;  // whose normal images the image was compared with; "": all
};

struct Stage {
  std::string name;
  std::vector<int64_t> shape;
  std::vector<float> values;
};

// Milliseconds.
struct Timings {
  double queue = 0, compute = 0, resize = 0, encode = 0, denoise = 0, decode = 0, extract = 0, map = 0;
};

struct ImageResult {
  double score = 0;
  std::optional<EvidenceScores> evidence;  // only with a normality
  int64_t size = 0;                        // S
  std::vector<float> map;                  // [S, S]
  std::vector<uint8_t> reconstruction;     // RGB8 [S, S, 3]
  std::vector<Stage> stages;
  Timings timings;
  int64_t batch_size = 0;
};

// Called after each denoising step with the completed and total number of steps; returning false stops the
// batch.
using StepCallback = std::function<bool(int64_t done, int64_t total)>;

class Pipeline {
 public:
  // With `use_pool` the results of the networks are allocated outside the heap (PooledScope) until the batch
  // ends, and free heap memory is returned to the system after each network. With `normality` map and score
  // are the combined ones (docs/design/evidence.md), otherwise the published ones.
  Pipeline(Manifest manifest, std::unique_ptr<Networks> modules, c10::Device device,
           c10::ScalarType precision, bool use_pool = false, std::unique_ptr<Normality> normality = nullptr);

  // Scores a batch. The result of an image depends on the rest of the batch only by float32 rounding. Returns
  // an empty vector if the callback stopped the batch.
  [[nodiscard]] std::vector<ImageResult> run(std::span<const ImageRequest> batch,
                                             const StepCallback& on_step);

  [[nodiscard]] const Manifest& manifest() const { return manifest_; }

 private:
  at::Tensor load_frames(std::span<const ImageRequest> batch) const;
  at::Tensor embed_if_wanted(std::span<const ImageRequest> batch, const Features& maps) const;
  at::Tensor start_of_sampling(const at::Tensor& z, const std::vector<at::Tensor>& noise) const;

  Manifest manifest_;
  std::unique_ptr<Networks> networks_;
  c10::Device device_;
  c10::ScalarType precision_;
  bool use_pool_;
  std::unique_ptr<Normality> normality_;
};

}  // namespace diad
