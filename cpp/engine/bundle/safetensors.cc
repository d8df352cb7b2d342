#include "bundle/safetensors.h"

#include <ATen/EmptyTensor.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>
#include <tuple>

#include "support/engine_error.h"

namespace diad {

using nlohmann::json;

namespace {

static_assert(std::endian::native == std::endian::little, "the format is little-endian");

constexpr uint64_t kLengthBytes = 8;
constexpr uint64_t kLargestHeader = 16 << 20;  // bytes
constexpr int kDeepestHeader = 3;              // {"name": {"shape": [..]}}
constexpr size_t kMostDimensions = 8;
constexpr const char* kMetadata = "__metadata__";

std::string shown(const json& value) {
  std::string text = value.dump(-1, ' ', false, json::error_handler_t::replace);
  return text.size() > 60 ? text.substr(0, 60) + "..." : text;
}

// Throws errors that name the file.
class Complaints {
 public:
  explicit Complaints(const std::string& file) : file_(file) {}
  [[noreturn]] void corrupt(const std::string& what) const {
    throw EngineError(code::kBundleCorrupt, file_ + ": " + what);
  }
  [[noreturn]] void invalid(const std::string& what) const {
    throw EngineError(code::kBundleInvalid, file_ + ": " + what);
  }

 private:
  const std::string& file_;
};

json parse_header(std::string_view text, const Complaints& complaints) {
  bool too_deep = false, repeated = false;
  std::set<std::string> names;
  const auto keep = [&](int depth, json::parse_event_t event, const json& value) {
    too_deep = too_deep || depth > kDeepestHeader;
    // The parser would keep the last of two tensors with the same name.
    if (event == json::parse_event_t::key && depth == 1)
      repeated = repeated || !names.insert(value.get<std::string>()).second;
    return !too_deep;
  };
  json header = json::parse(text, keep, false);
  if (too_deep || header.is_discarded() || !header.is_object())
    complaints.corrupt("Expected a JSON object as header");
  if (repeated) complaints.corrupt("Expected each tensor's name once");
  return header;
}

// Position of a tensor in the data section, checked against its shape.
struct Place {
  uint64_t begin, end;
  std::string name;
  std::vector<int64_t> shape;
  c10::ScalarType type;
};

c10::ScalarType type_of(const std::string& name, const json& entry, const Complaints& complaints) {
  const auto dtype = entry.find("dtype");
  if (dtype == entry.end() || !dtype->is_string()) complaints.corrupt("Expected a dtype for " + name);
  if (*dtype == "F32") return c10::kFloat;
  if (*dtype == "F16") return c10::kHalf;
  complaints.invalid("Expected the dtype F16 or F32 for " + name + " but received " + shown(*dtype));
}

std::vector<int64_t> shape_of(const std::string& name, const json& entry, uint64_t most_elements,
                              const Complaints& complaints) {
  const auto shape = entry.find("shape");
  if (shape == entry.end() || !shape->is_array() || shape->size() > kMostDimensions)
    complaints.corrupt("Expected a shape for " + name);
  std::vector<int64_t> sizes;
  uint64_t elements = 1;
  for (const json& size : *shape) {
    const bool fits =
        size.is_number_unsigned() && size.get<uint64_t>() <= most_elements / std::max<uint64_t>(1, elements);
    if (!fits)
      complaints.corrupt("Expected a shape that fits the file for " + name + " but received " +
                         shown(*shape));
    elements *= size.get<uint64_t>();
    sizes.push_back(size.get<int64_t>());
  }
  return sizes;
}

Place place_of(const std::string& name, const json& entry, uint64_t data_bytes,
               const Complaints& complaints) {
  if (!entry.is_object())
    complaints.corrupt("Expected an object for " + name + " but received " + shown(entry));
  Place place{0, 0, name, {}, type_of(name, entry, complaints)};
  const auto width = static_cast<uint64_t>(c10::elementSize(place.type));
  place.shape = shape_of(name, entry, data_bytes / width, complaints);
  const auto offsets = entry.find("data_offsets");
  const bool pair = offsets != entry.end() && offsets->is_array() && offsets->size() == 2 &&
                    (*offsets)[0].is_number_unsigned() && (*offsets)[1].is_number_unsigned();
  if (!pair) complaints.corrupt("Expected two data_offsets for " + name);
  place.begin = (*offsets)[0].get<uint64_t>();
  place.end = (*offsets)[1].get<uint64_t>();
  if (place.begin > place.end || place.end > data_bytes) {
    complaints.corrupt("Expected data_offsets within " + std::to_string(data_bytes) + " bytes for " + name +
                       " but received " + shown(*offsets));
  }
  uint64_t bytes = width;
  for (const int64_t size : place.shape) bytes *= static_cast<uint64_t>(size);
  if (place.end - place.begin != bytes) {
    complaints.corrupt("Expected " + std::to_string(bytes) + " bytes for " + name +
                       " but its data_offsets are " + shown(*offsets));
  }
  return place;
}

std::map<std::string, std::string> metadata_of(const json& entry, const Complaints& complaints) {
  std::map<std::string, std::string> metadata;
  if (!entry.is_object())
    complaints.corrupt("Expected an object for " + std::string(kMetadata) + " but received " + shown(entry));
  for (const auto& [key, value] : entry.items()) {
    if (!value.is_string())
      complaints.corrupt("Expected a string for the metadata " + key + " but received " + shown(value));
    metadata.emplace(key, value.get<std::string>());
  }
  return metadata;
}

at::Tensor tensor_of(const Place& place, const uint8_t* data) {
  at::Tensor tensor = at::detail::empty_cpu(place.shape, place.type, false, std::nullopt);
  if (tensor.numel() > 0) std::memcpy(tensor.mutable_data_ptr(), data + place.begin, tensor.nbytes());
  return tensor;
}

}  // namespace

Safetensors parse_safetensors(std::span<const uint8_t> bytes, const std::string& file) {
  const Complaints complaints(file);
  uint64_t header_bytes = 0;
  if (bytes.size() < kLengthBytes)
    complaints.corrupt("Expected a safetensors file but it has " + std::to_string(bytes.size()) + " bytes");
  if (bytes.size() > uint64_t{1} << 50) complaints.corrupt("Expected at most 2^50 bytes");
  std::memcpy(&header_bytes, bytes.data(), kLengthBytes);
  if (header_bytes > kLargestHeader || header_bytes > bytes.size() - kLengthBytes) {
    complaints.corrupt("Expected a header of at most 16 MiB within the file but its length is " +
                       std::to_string(header_bytes));
  }
  const std::span<const uint8_t> data = bytes.subspan(kLengthBytes + header_bytes);
  const json header =
      parse_header({reinterpret_cast<const char*>(bytes.data()) + kLengthBytes, header_bytes}, complaints);
  Safetensors content;
  std::vector<Place> places;
  for (const auto& [name, entry] : header.items()) {
    if (name == kMetadata) {
      content.metadata = metadata_of(entry, complaints);
    } else {
      places.push_back(place_of(name, entry, data.size(), complaints));
    }
  }
  std::ranges::sort(places, {}, [](const Place& place) { return std::tuple(place.begin, place.end); });
  uint64_t covered = 0;
  for (const Place& place : places) {
    if (place.begin != covered) {
      complaints.corrupt("Expected " + place.name + " at byte " + std::to_string(covered) +
                         " of the data but its data_offsets begin at " + std::to_string(place.begin));
    }
    covered = place.end;
  }
  if (covered != data.size()) {
    complaints.corrupt("Expected " + std::to_string(covered) + " bytes behind the header but the file has " +
                       std::to_string(data.size()));
  }
  for (const Place& place : places) content.tensors.emplace(place.name, tensor_of(place, data.data()));
  return content;
}

std::vector<uint8_t> serialize_safetensors(const Safetensors& content) {
  // Wider types first, so that every tensor is aligned.
  std::vector<std::pair<std::string, at::Tensor>> ordered;
  for (const c10::ScalarType type : {c10::kFloat, c10::kHalf}) {
    for (const auto& [name, tensor] : content.tensors) {
      if (tensor.scalar_type() == type) ordered.emplace_back(name, tensor.cpu().contiguous());
    }
  }
  if (ordered.size() != content.tensors.size()) {
    throw EngineError(code::kInvalidArgument,
                      "Expected tensors of half or single precision for a safetensors file");
  }
  json header = json::object();
  if (!content.metadata.empty()) header[kMetadata] = content.metadata;
  uint64_t end = 0;
  for (const auto& [name, tensor] : ordered) {
    const uint64_t begin = end;
    end += tensor.nbytes();
    header[name] = {{"dtype", tensor.scalar_type() == c10::kFloat ? "F32" : "F16"},
                    {"shape", tensor.sizes().vec()},
                    {"data_offsets", {begin, end}}};
  }
  std::string text = header.dump(-1, ' ', false, json::error_handler_t::replace);
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const uint64_t header_bytes = text.size();
  std::vector<uint8_t> bytes(kLengthBytes + header_bytes + end);
  std::memcpy(bytes.data(), &header_bytes, kLengthBytes);
  std::ranges::copy(text, bytes.begin() + kLengthBytes);
  uint8_t* to = bytes.data() + kLengthBytes + header_bytes;
  for (const auto& [name, tensor] : ordered) {
    if (tensor.nbytes() > 0) std::memcpy(to, tensor.const_data_ptr(), tensor.nbytes());
    to += tensor.nbytes();
  }
  return bytes;
}

}  // namespace diad
