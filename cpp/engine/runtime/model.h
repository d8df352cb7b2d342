// A loaded bundle with its thread and queue, shared by all loads with the same options.
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
  std::filesystem::path normality;  // written by a calibration; empty: none
};

class Model {
 public:
  // Loads the networks and starts the inference thread. `normality` is null or the parsed content of the
  // normality file with the given SHA-256. Throws EngineError.
  Model(const Bundle& bundle, const LoadOptions& options, const NormalClasses* normality,
        const std::string& normality_sha256);
  ~Model();
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  [[nodiscard]] Batcher& queue() { return *queue_; }
  // JSON with manifest, device, precision, threads, libtorch, loadMs, sizeBytes and normalitySha256 (null
  // without a normality file).
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

// Returns the model of a bundle; shares one that is already loaded with these options. Throws EngineError.
[[nodiscard]] std::shared_ptr<Model> open_model(const std::filesystem::path& folder,
                                                const LoadOptions& options);

// Returns JSON about the engine and the LibTorch it runs with.
[[nodiscard]] std::string engine_version();

}  // namespace diad
