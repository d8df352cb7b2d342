// Tests SHA-256, manifest and integrity check.
#include "bundle/bundle.h"

#include <unistd.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "bundle/sha256.h"
#include "support.h"

using nlohmann::json;

namespace {

std::string digest(const std::string& text, bool portable = false) {
  diad::Sha256 hash(portable);
  // Uses chunks of odd sizes to cover every path through the block buffer.
  const auto* bytes = reinterpret_cast<const uint8_t*>(text.data());
  for (size_t at = 0, step = 1; at < text.size(); at += step, step = step * 3 % 101 + 1) {
    hash.update({bytes + at, std::min(step, text.size() - at)});
  }
  return hash.hex();
}

json good_manifest() {
  json manifest = json::parse(R"({
    "format": "diad-bundle", "formatVersion": 1, "name": "m", "storage": "float16",
    "image": {"size": 64, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2]},
    "latent": {"channels": 4, "size": 8, "scale": 0.5, "logvarMin": -30, "logvarMax": 20},
    "schedule": {"trainTimesteps": 1000, "noise": {"sqrtAlphaBar": 0.06, "sqrtOneMinusAlphaBar": 0.99},
                 "steps": [{"timestep": 901, "alphaBar": 0.014, "alphaBarPrev": 0.5},
                           {"timestep": 1, "alphaBar": 0.5, "alphaBarPrev": 0.9}]},
    "map": {"sigma": 5, "truncate": 4}, "score": {"poolSize": 8, "poolCount": 8}, "files": {}})");
  for (const char* name : diad::kModuleFiles)
    manifest["files"][name] = {{"size", 3}, {"sha256", digest("abc")}};
  return manifest;
}

std::string refusal(const json& manifest) {
  return error_of([&] { (void)diad::parse_manifest(manifest.dump()); });
}

// A bundle folder of three-byte files, deleted with the object.
class TemporaryBundle {
 public:
  explicit TemporaryBundle(const json& manifest)
      : folder_(std::filesystem::temp_directory_path() / ("diad-" + std::to_string(getpid()))) {
    std::filesystem::create_directories(folder_);
    write("manifest.json", manifest.dump());
    write("manifest.sha256", digest(manifest.dump()) + "\n");
    for (const char* name : diad::kModuleFiles) write(name, "abc");
  }
  TemporaryBundle(const TemporaryBundle&) = delete;
  TemporaryBundle& operator=(const TemporaryBundle&) = delete;
  ~TemporaryBundle() { std::filesystem::remove_all(folder_); }

  void write(const std::string& name, const std::string& text) const {
    std::ofstream(folder_ / name, std::ios::binary) << text;
  }
  void remove(const std::string& name) const { std::filesystem::remove(folder_ / name); }
  [[nodiscard]] std::string opened(bool verify = true) const {
    return error_of([&] { (void)diad::open_bundle(folder_, verify); });
  }

 private:
  std::filesystem::path folder_;
};

}  // namespace

TEST_CASE("sha256: matches the standard's test vectors with and without the SHA instructions") {
  for (const bool portable : {false, true}) {
    CHECK(digest("", portable) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    CHECK(digest("abc", portable) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    CHECK(digest("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", portable) ==
          "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    CHECK(digest(std::string(1000000, 'a'), portable) ==
          "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
  }
}

TEST_CASE("manifest: reads a valid manifest") {
  const diad::Manifest m = diad::parse_manifest(good_manifest().dump());
  CHECK(m.image_size == 64);
  CHECK(m.latent_scale == 0.5);
  CHECK(!m.residual_decoding);
  CHECK(m.mean[2] == doctest::Approx(0.3));
  REQUIRE(m.steps.size() == 2);
  CHECK(m.steps[0].timestep == 901);
  CHECK(m.steps[1].alpha_bar_prev == doctest::Approx(0.9));
}

TEST_CASE("manifest: accepts a single step without noise and rejects an empty schedule") {
  json m = good_manifest();
  m["schedule"]["noise"] = {{"timestep", 401}, {"sqrtAlphaBar", 0.65}, {"sqrtOneMinusAlphaBar", 0}};
  m["schedule"]["steps"] = {{{"timestep", 401}, {"alphaBar", 0.4225}, {"alphaBarPrev", 1}}};
  const diad::Manifest parsed = diad::parse_manifest(m.dump());
  CHECK(parsed.sqrt_alpha_bar_noise == 0.65F);
  CHECK(parsed.sqrt_one_minus_alpha_bar_noise == 0);
  REQUIRE(parsed.steps.size() == 1);
  CHECK(parsed.steps[0].timestep == 401);
  CHECK(parsed.steps[0].alpha_bar == 0.4225F);
  CHECK(parsed.steps[0].alpha_bar_prev == 1);
  m["schedule"]["steps"] = json::array();
  CHECK(contains(refusal(m), "Expected 1 to 1000 steps for schedule.steps"));
}

TEST_CASE("manifest: limits the nesting of brackets") {
  const std::string good = good_manifest().dump();
  const auto with = [&](size_t depth) {
    return error_of([&] {
      (void)diad::parse_manifest(good.substr(0, good.size() - 1) + ",\"x\":" + std::string(depth, '[') +
                                 std::string(depth, ']') + "}");
    });
  };
  CHECK(with(10) == "no error");
  CHECK(with(1'000'000) == "ERR_DIAD_BUNDLE_INVALID: manifest.json: Expected at most 64 levels of brackets");
}

TEST_CASE("manifest: errors name the key and the value") {
  json m = good_manifest();
  m["formatVersion"] = 3;
  CHECK(contains(refusal(m),
                 "ERR_DIAD_BUNDLE_INVALID: manifest.json: Expected 1 for formatVersion but received 3"));
  m = good_manifest();
  m["image"]["size"] = 1e18;
  CHECK(contains(refusal(m), "image.size but received"));
  m = good_manifest();
  m["image"]["std"] = {0.1, 0.0, 0.1};
  CHECK(contains(refusal(m), "three numbers for image.std"));
  m = good_manifest();
  m["schedule"]["steps"][0]["alphaBarPrev"] = 0.001;
  CHECK(contains(refusal(m), "the noise would grow"));
  m = good_manifest();
  m["files"].erase("decoder.pt");
  CHECK(contains(refusal(m), "files.decoder.pt but it is absent"));
  m = good_manifest();
  m["storage"] = "int4";
  CHECK(contains(refusal(m), "storage but received \"int4\""));
  CHECK(contains(error_of([] { (void)diad::parse_manifest("[1]"); }), "Expected an object"));
  CHECK(contains(error_of([] { (void)diad::parse_manifest("{"); }), "does not parse"));
}

TEST_CASE("bundle: rejects wrong sizes, wrong hashes, missing files and paths outside the folder") {
  const TemporaryBundle bundle(good_manifest());
  CHECK(bundle.opened() == "no error");
  bundle.write("decoder.pt", "abd");
  CHECK(contains(bundle.opened(), "ERR_DIAD_BUNDLE_CORRUPT: decoder.pt does not have the sha256"));
  CHECK(bundle.opened(false) == "no error");
  bundle.write("decoder.pt", "abcd");
  CHECK(contains(bundle.opened(false), "decoder.pt has 4 bytes, the manifest says 3"));
  bundle.remove("decoder.pt");
  CHECK(contains(bundle.opened(false), "decoder.pt is missing"));
  bundle.write("decoder.pt", "abc");
  bundle.write("manifest.sha256", std::string(64, '0') + "\n");
  CHECK(contains(bundle.opened(), "ERR_DIAD_BUNDLE_CORRUPT: manifest.json does not have the sha256"));
  bundle.remove("manifest.sha256");
  CHECK(contains(bundle.opened(), "manifest.sha256 is missing"));
  json outside = good_manifest();
  outside["files"]["../decoder.pt"] = outside["files"]["decoder.pt"];
  bundle.write("manifest.json", outside.dump());
  CHECK(contains(bundle.opened(false), "Expected plain file names in files but received \"../decoder.pt\""));
  bundle.remove("manifest.json");
  CHECK(contains(bundle.opened(), "ERR_DIAD_BUNDLE_NOT_FOUND"));
}

TEST_CASE("manifest: evidence is optional, but its keys are required") {
  json manifest = good_manifest();
  CHECK_FALSE(diad::parse_manifest(manifest.dump()).evidence.has_value());
  manifest["evidence"] = {{"dimensions", 176},
                          {"grid", 32},
                          {"memoryVectors", 4000},
                          {"weights", {{"reconstruction", 0.5}, {"memory", 1}}}};
  const std::optional<diad::EvidenceSettings> evidence = diad::parse_manifest(manifest.dump()).evidence;
  REQUIRE(evidence.has_value());
  CHECK(evidence->dimensions == 176);
  CHECK(evidence->grid == 32);
  CHECK(evidence->memory_vectors == 4000);
  CHECK(evidence->weights.reconstruction == 0.5);
  CHECK(evidence->weights.memory == 1);
  json with_classes = manifest;
  with_classes["evidence"]["classWeights"] = {{"gear", {{"reconstruction", 0.25}, {"memory", 2}}}};
  const diad::EvidenceSettings settings = *diad::parse_manifest(with_classes.dump()).evidence;
  CHECK(settings.weights_of("gear").reconstruction == 0.25);
  CHECK(settings.weights_of("gear").memory == 2);
  CHECK(settings.weights_of("nut").reconstruction == 0.5);
  const auto refused = [&](const char* pointer, const json& value) {
    json changed = manifest;
    changed[json::json_pointer(pointer)] = value;
    return refusal(changed);
  };
  CHECK(contains(refused("/evidence", 5), "Expected an object for evidence"));
  CHECK(contains(refused("/evidence/classWeights", 5),
                 "Expected an object for evidence.classWeights but received 5"));
  CHECK(contains(refused("/evidence/classWeights", {{"a", {{"memory", 1}}}}), "evidence.classWeights.a"));
  CHECK(contains(refused("/evidence/dimensions", 4097),
                 "Expected an integer from 1 to 4096 for evidence.dimensions but received 4097"));
  CHECK(contains(refused("/evidence/grid", 257), "Expected an integer from 1 to 256 for evidence.grid"));
  CHECK(contains(refused("/evidence/memoryVectors", 0),
                 "Expected an integer from 1 to 65536 for evidence.memoryVectors"));
  CHECK(contains(refused("/evidence/weights", {{"memory", 1}}),
                 "Expected the key evidence.weights.reconstruction"));
  CHECK(contains(refused("/evidence/weights/memory", -1),
                 "Expected a number from 0 to 1000 for evidence.weights.memory"));
}
