// A loaded bundle with its thread and queue, shared by everybody who loads it with the same options.
#pragma once

#include <c10/core/Device.h>

#include <filesystem>
#include <memory>
#include <string>

#include "bundle/bundle.h"
#include "evidence/normality.h"
#include "runtime/batcher.h"

namespace diad {

struct LoadOptions {
  std::string device = "auto";
  std::string precision = "float32";
  int threads = 0;  // intra-op; 0: LibTorch's default
  BatcherOptions queue;
  bool verify = true;
  bool warmup = true;
  std::filesystem::path normality;  // file that calibration wrote; empty: none
};

class Model {
 public:
  // Loads the networks and starts the inference thread. `normality`: null, or what normal images look like,
  // of the file with that sha256. Throws EngineError.
  Model(const Bundle& bundle, const LoadOptions& options, const NormalClasses* normality,
        const std::string& normality_sha256);
  ~Model();
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  [[nodiscard]] Batcher& queue() { return *queue_; }
  // JSON: manifest, device, precision, threads, libtorch, loadMs, sizeBytes, normalitySha256 (null without
  // one).
  [[nodiscard]] const std::string& info() const { return info_; }
  [[nodiscard]] const Manifest& manifest() const { return manifest_; }
  [[nodiscard]] int threads() const { return threads_; }

 private:
  const c10::Device device_;
  const Manifest manifest_;
  const int threads_;
  std::string info_;
  std::unique_ptr<Batcher> queue_;  // its thread owns the networks
};

// The model of a bundle; one that is loaded already with these options is shared. Throws EngineError.
[[nodiscard]] std::shared_ptr<Model> open_model(const std::filesystem::path& folder,
                                                const LoadOptions& options);

// JSON about the engine and the LibTorch it runs in.
[[nodiscard]] std::string engine_version();

}  // namespace diad
