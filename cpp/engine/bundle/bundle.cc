#include "bundle/bundle.h"

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "bundle/sha256.h"
#include "support/engine_error.h"

namespace diad {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr int64_t kFormatVersion = 1;
constexpr uintmax_t kLargestManifest = 4 << 20;  // bytes
constexpr int kDeepestManifest = 64;

[[noreturn]] void invalid(const std::string& what) {
  throw EngineError(code::kBundleInvalid, "manifest.json: " + what);
}

std::string shown(const json& value) {
  std::string text = value.dump(-1, ' ', false, json::error_handler_t::replace);
  return text.size() > 60 ? text.substr(0, 60) + "..." : text;
}

const json& member(const json& object, const char* key, const std::string& path) {
  if (!object.is_object()) invalid("Expected an object for " + path + " but received " + shown(object));
  const auto found = object.find(key);
  if (found == object.end())
    invalid("Expected the key " + path + (path.empty() ? "" : ".") + key + " but it is absent");
  return *found;
}

double number(const json& object, const char* key, const std::string& path, double low, double high) {
  const json& value = member(object, key, path);
  const bool fits = value.is_number() && std::isfinite(value.get<double>()) && value.get<double>() >= low &&
                    value.get<double>() <= high;
  if (!fits) {
    std::ostringstream range;
    range << "Expected a number from " << low << " to " << high << " for " << path << "." << key
          << " but received " << shown(value);
    invalid(range.str());
  }
  return value.get<double>();
}

int64_t integer(const json& object, const char* key, const std::string& path, int64_t low, int64_t high) {
  const json& value = member(object, key, path);
  if (!value.is_number_integer() || value.get<double>() < static_cast<double>(low) ||
      value.get<double>() > static_cast<double>(high)) {
    invalid("Expected an integer from " + std::to_string(low) + " to " + std::to_string(high) + " for " +
            path + "." + key + " but received " + shown(value));
  }
  return value.get<int64_t>();
}

std::string text(const json& object, const char* key, const std::string& path) {
  const json& value = member(object, key, path);
  if (!value.is_string())
    invalid("Expected a string for " + path + (path.empty() ? "" : ".") + key + " but received " +
            shown(value));
  return value.get<std::string>();
}

std::array<float, 3> triple(const json& object, const char* key, const std::string& path, double low,
                            double high) {
  const json& value = member(object, key, path);
  std::array<float, 3> result{};
  if (!value.is_array() || value.size() != 3)
    invalid("Expected three numbers for " + path + "." + key + " but received " + shown(value));
  for (size_t i = 0; i < 3; ++i) {
    if (!value[i].is_number() || value[i].get<double>() < low || value[i].get<double>() > high) {
      invalid("Expected three numbers for " + path + "." + key + " but received " + shown(value));
    }
    result[i] = value[i].get<float>();
  }
  return result;
}

std::vector<DdimStep> parse_steps(const json& schedule, int64_t train_timesteps) {
  const json& list = member(schedule, "steps", "schedule");
  if (!list.is_array() || list.empty() || list.size() > 1000)
    invalid("Expected 1 to 1000 steps for schedule.steps");
  std::vector<DdimStep> steps;
  for (size_t i = 0; i < list.size(); ++i) {
    const std::string path = "schedule.steps[" + std::to_string(i) + "]";
    const DdimStep step{integer(list[i], "timestep", path, 0, train_timesteps - 1),
                        static_cast<float>(number(list[i], "alphaBar", path, 1e-9, 1)),
                        static_cast<float>(number(list[i], "alphaBarPrev", path, 1e-9, 1))};
    if (step.alpha_bar_prev < step.alpha_bar)
      invalid(path + ": alphaBarPrev is below alphaBar, the noise would grow");
    steps.push_back(step);
  }
  return steps;
}

EvidenceWeights parse_weights(const json& weights, const std::string& path) {
  return {number(weights, "reconstruction", path, 0, 1000), number(weights, "memory", path, 0, 1000)};
}

EvidenceSettings parse_evidence(const json& evidence) {
  EvidenceSettings result{integer(evidence, "dimensions", "evidence", 1, 4096),
                          integer(evidence, "grid", "evidence", 1, 256),
                          integer(evidence, "memoryVectors", "evidence", 1, 65536),
                          parse_weights(member(evidence, "weights", "evidence"), "evidence.weights")};
  if (!evidence.contains("classWeights")) return result;
  const json& classes = evidence["classWeights"];
  if (!classes.is_object())
    invalid("Expected an object for evidence.classWeights but received " + shown(classes));
  for (const auto& [name, weights] : classes.items()) {
    result.class_weights.emplace(name, parse_weights(weights, "evidence.classWeights." + name));
  }
  return result;
}

std::string read_text(const fs::path& file) {
  std::ifstream stream(file, std::ios::binary);
  std::ostringstream content;
  content << stream.rdbuf();
  if (!stream) throw EngineError(code::kBundleNotFound, "Cannot read " + file.string());
  return content.str();
}

bool is_plain(const std::string& name) {
  return !name.empty() && name != "." && name != ".." &&
         name.find_first_of("/\\\0", 0, 3) == std::string::npos;
}

// Returns the path of a file inside the bundle. The name must not contain folders except one
// subfolder (golden/000.png). The file must not be a link that leads out of the bundle.
fs::path inside(const fs::path& folder, const std::string& name) {
  const size_t slash = name.find('/');
  const bool fits = slash == std::string::npos
                        ? is_plain(name)
                        : is_plain(name.substr(0, slash)) && is_plain(name.substr(slash + 1));
  if (!fits) invalid("Expected plain file names in files but received " + shown(name));
  const fs::path file = folder / name;
  std::error_code error;
  if (!fs::is_regular_file(file, error)) {
    throw EngineError(code::kBundleCorrupt, name + " is missing from the bundle " + folder.string());
  }
  // Links are allowed only to files in the same folder.
  if (fs::canonical(file).parent_path() != (fs::canonical(folder) / name).parent_path()) {
    throw EngineError(code::kBundleCorrupt,
                      name + " is a link that leads out of the bundle " + folder.string());
  }
  return file;
}

void check_file(const fs::path& folder, const std::string& name, const json& entry, bool verify) {
  const std::string path = "files." + name;
  const auto expected = static_cast<uintmax_t>(integer(entry, "size", path, 0, int64_t{1} << 50));
  const std::string digest = text(entry, "sha256", path);
  const fs::path file = inside(folder, name);
  const uintmax_t size = fs::file_size(file);
  if (size != expected) {
    throw EngineError(code::kBundleCorrupt, name + " has " + std::to_string(size) +
                                                " bytes, the manifest says " + std::to_string(expected) +
                                                "; copy the bundle again");
  }
  if (verify && sha256_of_file(file) != digest) {
    throw EngineError(code::kBundleCorrupt,
                      name + " does not have the sha256 of the manifest; copy the bundle again");
  }
}

}  // namespace

Manifest parse_manifest(const std::string& source) {
  bool too_deep = false;  // protects the recursive serializer
  const auto keep = [&too_deep](int depth, json::parse_event_t, const json&) {
    too_deep = too_deep || depth > kDeepestManifest;
    return !too_deep;
  };
  const json root = json::parse(source, keep, false);
  if (too_deep) invalid("Expected at most " + std::to_string(kDeepestManifest) + " levels of brackets");
  if (root.is_discarded()) invalid("Expected JSON but the file does not parse");
  if (!root.is_object()) invalid("Expected an object but received " + shown(root));
  if (text(root, "format", "") != "diad-bundle")
    invalid("Expected \"diad-bundle\" for format but received " + shown(root["format"]));
  const json& version = member(root, "formatVersion", "");
  if (version != kFormatVersion) {
    invalid("Expected " + std::to_string(kFormatVersion) + " for formatVersion but received " +
            shown(version) + "; the bundle was made for another version of diad");
  }
  Manifest m;
  m.name = text(root, "name", "");
  m.storage = text(root, "storage", "");
  if (m.storage != "float32" && m.storage != "float16" && m.storage != "bfloat16") {
    invalid("Expected float32, float16 or bfloat16 for storage but received " + shown(root["storage"]));
  }
  const json& image = member(root, "image", "");
  m.image_size = integer(image, "size", "image", 16, 4096);
  m.mean = triple(image, "mean", "image", -10, 10);
  m.std = triple(image, "std", "image", 1e-6, 10);
  const json& latent = member(root, "latent", "");
  m.latent_channels = integer(latent, "channels", "latent", 1, 256);
  m.latent_size = integer(latent, "size", "latent", 1, m.image_size);
  m.latent_scale = number(latent, "scale", "latent", 1e-6, 1e6);
  if (const auto residual = latent.find("residual"); residual != latent.end()) {
    if (!residual->is_boolean())
      invalid("Expected true or false for latent.residual but received " + shown(*residual));
    m.residual_decoding = residual->get<bool>();
  }
  m.logvar_min = number(latent, "logvarMin", "latent", -1000, 1000);
  m.logvar_max = number(latent, "logvarMax", "latent", m.logvar_min, 1000);
  const json& schedule = member(root, "schedule", "");
  const int64_t train_timesteps = integer(schedule, "trainTimesteps", "schedule", 1, 1 << 20);
  const json& noise = member(schedule, "noise", "schedule");
  m.sqrt_alpha_bar_noise = static_cast<float>(number(noise, "sqrtAlphaBar", "schedule.noise", 0, 1));
  m.sqrt_one_minus_alpha_bar_noise =
      static_cast<float>(number(noise, "sqrtOneMinusAlphaBar", "schedule.noise", 0, 1));
  m.steps = parse_steps(schedule, train_timesteps);
  const json& map = member(root, "map", "");
  m.map_sigma = number(map, "sigma", "map", 1e-3, 1000);
  m.map_truncate = number(map, "truncate", "map", 0.1, 100);
  const json& score = member(root, "score", "");
  m.pool_size = integer(score, "poolSize", "score", 1, m.image_size);
  m.pool_count = integer(score, "poolCount", "score", 0, 1000);
  if (m.pool_count * (m.pool_size - 1) >= m.image_size) {
    invalid("score: " + std::to_string(m.pool_count) + " pools of " + std::to_string(m.pool_size) +
            " leave nothing of a map of " + std::to_string(m.image_size));
  }
  if (root.contains("evidence")) m.evidence = parse_evidence(root["evidence"]);
  const json& files = member(root, "files", "");
  for (const char* name : kModuleFiles) member(files, name, "files");
  return m;
}

Bundle open_bundle(const fs::path& folder, bool verify) {
  std::error_code error;
  if (!fs::is_directory(folder, error)) {
    throw EngineError(code::kBundleNotFound, "There is no bundle folder at " + folder.string());
  }
  const fs::path file = folder / "manifest.json";
  if (!fs::is_regular_file(file, error)) {
    throw EngineError(
        code::kBundleNotFound,
        folder.string() +
            " holds no manifest.json; a bundle is written by `python -m diad_reference export`");
  }
  if (fs::file_size(file) > kLargestManifest) invalid("Expected at most 4 MiB but the file is larger");
  Bundle bundle;
  bundle.folder = folder;
  bundle.manifest_json = read_text(file);
  bundle.manifest_sha256 = sha256_of_file(file);
  if (verify) {
    const fs::path seal = folder / "manifest.sha256";
    if (!fs::is_regular_file(seal, error))
      throw EngineError(code::kBundleCorrupt,
                        "manifest.sha256 is missing from the bundle " + folder.string());
    if (read_text(seal) != bundle.manifest_sha256 + "\n") {
      throw EngineError(code::kBundleCorrupt,
                        "manifest.json does not have the sha256 of manifest.sha256; copy the bundle again");
    }
  }
  bundle.manifest = parse_manifest(bundle.manifest_json);
  const json root = json::parse(bundle.manifest_json);
  for (const auto& [name, entry] : root["files"].items()) {
    check_file(folder, name, entry, verify);
    bundle.size_bytes += entry["size"].get<uint64_t>();
  }
  return bundle;
}

}  // namespace diad
