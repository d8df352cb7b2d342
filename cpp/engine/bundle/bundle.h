// The bundle on disk: manifest, schema check, integrity check (docs/architecture.md, "The bundle").
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
  int64_t timestep;      // what the model was told, 0..trainTimesteps-1
  float alpha_bar;       // before the step, (0, 1]
  float alpha_bar_prev;  // after it, (0, 1]
};

// Weights of the two normalized maps in the combined map.
struct EvidenceWeights {
  double reconstruction = 0;
  double memory = 0;
};

// How a model judges an image by reconstruction and memory (docs/evidence.md).
struct EvidenceSettings {
  int64_t dimensions = 0;      // D, of a vector
  int64_t grid = 0;            // G: an image has G x G vectors
  int64_t memory_vectors = 0;  // M at most, per class
  EvidenceWeights weights;
  std::map<std::string, EvidenceWeights> class_weights = {};  // of classes with weights of their own

  [[nodiscard]] const EvidenceWeights& weights_of(const std::string& class_name) const {
    const auto found = class_weights.find(class_name);
    return found == class_weights.end() ? weights : found->second;
  }
};

// What manifest.json says, checked against the schema.
struct Manifest {
  std::string name;
  std::string storage;          // dtype of the stored weights
  int64_t image_size = 0;       // S, pixels
  std::array<float, 3> mean{};  // of the normalization, on 0..1
  std::array<float, 3> std{};
  int64_t latent_channels = 0;
  int64_t latent_size = 0;  // s
  double latent_scale = 0;
  bool residual_decoding = false;  // the reconstruction is the input plus the decoded change of the latent
  double logvar_min = 0;
  double logvar_max = 0;
  float sqrt_alpha_bar_noise = 0;
  float sqrt_one_minus_alpha_bar_noise = 0;
  std::vector<DdimStep> steps;  // in the order of evaluation
  double map_sigma = 0;         // pixels
  double map_truncate = 0;      // standard deviations
  int64_t pool_size = 0;        // pixels
  int64_t pool_count = 0;
  std::optional<EvidenceSettings> evidence;  // none: the published map and score alone
};

struct Bundle {
  std::filesystem::path folder;
  Manifest manifest;
  std::string manifest_json;    // the file's text
  std::string manifest_sha256;  // identifies the model
  uint64_t size_bytes = 0;      // of all listed files
};

inline constexpr std::array<const char*, 4> kModuleFiles{"encoder.pt", "denoiser.pt", "decoder.pt", "extractor.pt"};

// Parses and checks a manifest's text. Throws EngineError ERR_DIAD_BUNDLE_INVALID that names the key and the value.
[[nodiscard]] Manifest parse_manifest(const std::string& text);

// Opens a bundle: reads the manifest and checks every file's size and, with `verify`, its sha256.
// Throws EngineError: ERR_DIAD_BUNDLE_NOT_FOUND (folder or manifest absent), _INVALID (schema), _CORRUPT (file missing, size, hash).
[[nodiscard]] Bundle open_bundle(const std::filesystem::path& folder, bool verify);

}  // namespace diad
