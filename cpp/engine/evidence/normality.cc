#include "evidence/normality.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/isfinite.h>

#include <array>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>

#include "bundle/safetensors.h"
#include "support/engine_error.h"

namespace diad {

using nlohmann::json;

namespace {

constexpr const char* kFormat = "diad-normality";
constexpr const char* kVersion = "1";

// Vectors of a memory and of an image that are compared to select a class.
constexpr int64_t kSampled = 256, kQueryStride = 7;

// At most kSampled evenly spaced rows.
at::Tensor sample_of(const at::Tensor& memory) {
  return memory.slice(0, 0, std::nullopt, (memory.size(0) + kSampled - 1) / kSampled);
}

std::string memory_name(const std::string& of_class) { return of_class + "/memory"; }
std::string mean_name(const std::string& of_class, size_t map) {
  return of_class + "/mean." + std::to_string(map + 1);
}
std::string spread_name(const std::string& of_class, size_t map) {
  return of_class + "/spread." + std::to_string(map + 1);
}

// A parsed file. take() removes a tensor and checks it.
class Reader {
 public:
  Reader(Safetensors content, const std::string& file) : content_(std::move(content)), file_(file) {}

  [[noreturn]] void invalid(const std::string& what) const {
    throw EngineError(code::kBundleInvalid, file_ + ": " + what);
  }

  [[nodiscard]] std::string metadata(const char* key) const {
    const auto found = content_.metadata.find(key);
    return found == content_.metadata.end() ? "" : found->second;
  }

  at::Tensor take(const std::string& name, c10::ScalarType type) {
    const auto found = content_.tensors.find(name);
    if (found == content_.tensors.end()) invalid("Expected a tensor " + name + " but it is absent");
    at::Tensor tensor = std::move(found->second);
    content_.tensors.erase(found);
    if (tensor.scalar_type() != type || tensor.dim() != 2 || tensor.numel() == 0) {
      std::ostringstream words;
      words << "Expected a matrix of " << (type == c10::kHalf ? "F16" : "F32") << " for " << name
            << " but received " << tensor.sizes() << " of " << tensor.scalar_type();
      invalid(words.str());
    }
    if (!at::isfinite(tensor).all().item<bool>()) invalid("Expected finite numbers for " + name);
    return tensor;
  }

  void require_size(const std::string& name, at::IntArrayRef received, at::IntArrayRef expected) const {
    if (received == expected) return;
    std::ostringstream words;
    words << "Expected " << expected << " for " << name << " but received " << received
          << "; calibrate this bundle again";
    invalid(words.str());
  }

  void require_empty() const {
    if (!content_.tensors.empty()) invalid("Expected no tensor " + content_.tensors.begin()->first);
  }

 private:
  Safetensors content_;
  const std::string& file_;
};

NormalClass take_class(Reader& reader, const std::string& name, const EvidenceSettings& evidence) {
  NormalClass result;
  result.memory = reader.take(memory_name(name), c10::kHalf);
  const int64_t vectors = result.memory.size(0);
  if (vectors > evidence.memory_vectors) {
    reader.invalid("Expected at most " + std::to_string(evidence.memory_vectors) + " vectors for " +
                   memory_name(name) + " but received " + std::to_string(vectors));
  }
  reader.require_size(memory_name(name), result.memory.sizes(), {vectors, evidence.dimensions});
  for (size_t i = 0; i < result.maps.mean.size(); ++i) {
    result.maps.mean[i] = reader.take(mean_name(name, i), c10::kFloat);
    result.maps.divisor[i] = reader.take(spread_name(name, i), c10::kFloat);
    reader.require_size(spread_name(name, i), result.maps.divisor[i].sizes(), result.maps.mean[i].sizes());
    if (!(result.maps.divisor[i] > 0).all().item<bool>())
      reader.invalid("Expected positive numbers for " + spread_name(name, i));
  }
  reader.require_size(mean_name(name, 3), result.maps.mean[3].sizes(), {evidence.grid, evidence.grid});
  return result;
}

}  // namespace

std::vector<uint8_t> serialize_normality(const NormalClasses& classes) {
  Safetensors content;
  json images = json::object();
  for (const auto& [name, of_class] : classes) {
    images[name] = of_class.images;
    content.tensors.emplace(memory_name(name), of_class.memory.to(at::kHalf));
    for (size_t i = 0; i < of_class.maps.mean.size(); ++i) {
      content.tensors.emplace(mean_name(name, i), of_class.maps.mean[i]);
      content.tensors.emplace(spread_name(name, i), of_class.maps.divisor[i]);
    }
  }
  const std::string counts = images.dump(-1, ' ', false, json::error_handler_t::replace);
  content.metadata = {{"format", kFormat}, {"version", kVersion}, {"images", counts}};
  return serialize_safetensors(content);
}

NormalClasses parse_normality(std::span<const uint8_t> bytes, const std::string& file,
                              const Manifest& manifest) {
  Reader reader(parse_safetensors(bytes, file), file);
  if (reader.metadata("format") != kFormat)
    reader.invalid("Expected the format diad-normality in its metadata");
  if (reader.metadata("version") != kVersion) {
    reader.invalid("Expected version 1 but received \"" + reader.metadata("version") +
                   "\"; it was made for another version of diad");
  }
  const json images = json::parse(reader.metadata("images"), nullptr, false);
  if (!images.is_object() || images.empty())
    reader.invalid("Expected an object with at least one entry for the metadata images");
  NormalClasses classes;
  for (const auto& [name, count] : images.items()) {
    if (!count.is_number_unsigned()) reader.invalid("Expected a number of images for \"" + name + "\"");
    NormalClass of_class = take_class(reader, name, *manifest.evidence);
    of_class.images = count.get<int64_t>();
    for (size_t i = 0; i < of_class.maps.mean.size(); ++i) {  // all maps come from the same networks
      const NormalMaps& first = classes.empty() ? of_class.maps : classes.begin()->second.maps;
      reader.require_size(mean_name(name, i), of_class.maps.mean[i].sizes(), first.mean[i].sizes());
    }
    classes.emplace(name, std::move(of_class));
  }
  reader.require_empty();
  return classes;
}

at::Tensor vectors_of(const at::Tensor& embedding) { return embedding.flatten(1).t().contiguous(); }

Normality::Normality(const NormalClasses& classes, const Manifest& manifest, c10::Device device)
    : combine_(manifest, device) {
  for (const auto& [name, of_class] : classes) {
    Entry entry{
        NearestVectors(of_class.memory, device), NearestVectors(sample_of(of_class.memory), device), {}};
    for (size_t i = 0; i < of_class.maps.mean.size(); ++i) {
      entry.maps.mean[i] = of_class.maps.mean[i].to(device);
      entry.maps.divisor[i] = of_class.maps.divisor[i].to(device);
    }
    entries_.emplace(name, std::move(entry));
  }
}

Normality::Entries::iterator Normality::select(const std::string& name, const at::Tensor& vectors) {
  if (const auto found = entries_.find(name); found != entries_.end()) return found;
  if (entries_.size() == 1) return entries_.begin();
  const at::Tensor queries = vectors.slice(0, 0, std::nullopt, kQueryStride);
  const auto distance = [&](Entry& entry) {
    return entry.sample.distances(queries).to(at::kDouble).mean().item<double>();
  };
  auto nearest = entries_.end();
  double least = std::numeric_limits<double>::infinity();
  for (auto entry = entries_.begin(); entry != entries_.end(); ++entry) {
    const double average = distance(entry->second);
    if (nearest != entries_.end() && !(average < least)) continue;
    nearest = entry;
    least = average;
  }
  return nearest;
}

Normality::Judgement Normality::judge(const Features& distances, const at::Tensor& embedding,
                                      std::span<const std::string> classes) {
  const NormalMaps& any = entries_.begin()->second.maps;
  for (size_t i = 0; i < distances.size(); ++i) {
    if (distances[i].sizes().slice(1) == any.mean[i].sizes()) continue;
    std::ostringstream words;
    words << "The normality file has maps of " << any.mean[i].sizes() << " but this bundle produces maps of "
          << distances[i].sizes().slice(1) << "; calibrate it again";
    throw EngineError(code::kBundleInvalid, words.str());
  }
  std::vector<std::string> names;
  std::vector<at::Tensor> nearest;
  std::array<std::vector<at::Tensor>, 4> maps;
  for (size_t image = 0; image < classes.size(); ++image) {
    const at::Tensor of_image = embedding[static_cast<int64_t>(image)], vectors = vectors_of(of_image);
    auto& [name, entry] = *select(classes[image], vectors);
    names.push_back(name);
    nearest.push_back(entry.memory.distances(vectors).view({1, of_image.size(1), of_image.size(2)}));
    const auto row = [&](size_t i) { return distances[i].narrow(0, static_cast<int64_t>(image), 1); };
    const EvidenceMaps of_class = normalized({row(0), row(1), row(2), nearest.back()}, entry.maps);
    for (size_t i = 0; i < maps.size(); ++i) maps[i].push_back(of_class[i]);
  }
  Evidence evidence =
      combine_({at::cat(maps[0]), at::cat(maps[1]), at::cat(maps[2]), at::cat(maps[3])}, names);
  return {std::move(names), std::move(evidence), at::cat(nearest)};
}

}  // namespace diad
