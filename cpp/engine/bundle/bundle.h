// Reads a bundle from disk: manifest, schema check, integrity check (docs/reference/bundle-format.md).
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace diad {

struct DdimStep {
  int64_t timestep;      // input of the denoiser, 0..trainTimesteps-1
  float alpha_bar;       // before the step, (0, 1]
  float alpha_bar_prev;  // after the step, (0, 1]
};

// Weights of the two normalized maps in the combined map.
struct EvidenceWeights {
  double reconstruction = 0;
  double memory = 0;
};

// Settings for scoring by reconstruction and memory (docs/design/evidence.md).
struct EvidenceSettings {
  int64_t dimensions = 0;      // D, length of a vector
  int64_t grid = 0;            // G: an image has G x G vectors
  int64_t memory_vectors = 0;  // M, maximum per class
  EvidenceWeights weights;
  std::map<std::string, EvidenceWeights> class_weights = {};  // of classes with weights of their own

  [[nodiscard]] const EvidenceWeights& weights_of(const std::string& class_name) const {
    const auto found = class_weights.find(class_name);
    return found == class_weights.end() ? weights : found->second;
  }
};

// Content of manifest.json, checked against the schema.
struct Manifest {
  std::string name;
  std::string storage;          // dtype of the stored weights
  int64_t image_size = 0;       // S, pixels
  std::array<float, 3> mean{};  // normalization of values in 0..1
  std::array<float, 3> std{};
  int64_t latent_channels = 0;
  int64_t latent_size = 0;  // s
  double latent_scale = 0;
  bool residual_decoding = false;  // the reconstruction is the input plus the decoded latent difference
  double logvar_min = 0;
  double logvar_max = 0;
  float sqrt_alpha_bar_noise = 0;
  float sqrt_one_minus_alpha_bar_noise = 0;
  std::vector<DdimStep> steps;  // in order of evaluation
  double map_sigma = 0;         // pixels
  double map_truncate = 0;      // standard deviations
  int64_t pool_size = 0;        // pixels
  int64_t pool_count = 0;
  std::optional<EvidenceSettings> evidence;  // none: published map and score only
};

struct Bundle {
  std::filesystem::path folder;
  Manifest manifest;
  std::string manifest_json;    // text of manifest.json
  std::string manifest_sha256;  // identifies the model
  uint64_t size_bytes = 0;      // sum over all listed files
};

inline constexpr std::array<const char*, 4> kModuleFiles{"encoder.pt", "denoiser.pt", "decoder.pt",
                                                         "extractor.pt"};

// Parses and checks the text of a manifest. Throws EngineError ERR_DIAD_BUNDLE_INVALID with the key and the
// value.
[[nodiscard]] Manifest parse_manifest(const std::string& text);

// Opens a bundle: reads the manifest and checks the size of every file and, with `verify`, its SHA-256.
// Throws EngineError: ERR_DIAD_BUNDLE_NOT_FOUND (no folder or manifest), ERR_DIAD_BUNDLE_INVALID (schema) or
// ERR_DIAD_BUNDLE_CORRUPT (missing file, wrong size or hash).
[[nodiscard]] Bundle open_bundle(const std::filesystem::path& folder, bool verify);

}  // namespace diad
