// Tests the C interface: errors have codes, exceptions do not escape.
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "diad_engine.h"
#include "support.h"

namespace {

std::string load_error(const char* bundle, diad_load_options options) {
  diad_engine* engine = nullptr;
  REQUIRE(diad_engine_load(bundle, &options, &engine) != 0);
  CHECK(engine == nullptr);
  const diad_error error = diad_engine_last_error();
  return std::string(error.code) + ": " + error.message;
}

}  // namespace

TEST_CASE("C interface: returns the version") {
  CHECK(diad_engine_abi() == DIAD_ENGINE_ABI);
  const nlohmann::json version = nlohmann::json::parse(diad_engine_version());
  CHECK(version["abi"] == DIAD_ENGINE_ABI);
  CHECK(version["libtorchBuilt"].is_string());
  CHECK(version["cudaDevices"].is_array());
}

TEST_CASE("C interface: loading reports the reason of a failure") {
  const diad_load_options good{"cpu", "float32", 0, 1, 0, 8, 1, 0, nullptr, 0, nullptr, nullptr, nullptr};
  CHECK(contains(load_error("/nowhere", good),
                 "ERR_DIAD_BUNDLE_NOT_FOUND: There is no bundle folder at /nowhere"));
  diad_load_options options = good;
  options.max_batch = 0;
  CHECK(contains(load_error("/nowhere", options),
                 "ERR_DIAD_INVALID_ARGUMENT: Expected at least 1 for maxBatch but received 0"));
  options = good;
  options.queue_limit = -4;
  CHECK(contains(load_error("/nowhere", options), "queueLimit but received -4"));
}

TEST_CASE("C interface: rejects a normality file for a bundle without evidence") {
  namespace fs = std::filesystem;
  const fs::path bundle = fs::temp_directory_path() / ("diad-published-" + std::to_string(getpid()));
  fs::copy(fs::path(DIAD_FIXTURES) / "../../../models/base", bundle, fs::copy_options::recursive);
  nlohmann::json manifest = nlohmann::json::parse(std::ifstream(bundle / "manifest.json"));
  manifest.erase("evidence");
  std::ofstream(bundle / "manifest.json") << manifest;
  diad_load_options options{"cpu", "float32", 1, 1,       0,       8,      /*verify=*/0,
                            0,     nullptr,   0, nullptr, nullptr, nullptr};
  options.normality = "/nowhere/normality.safetensors";
  const std::string error = load_error(bundle.c_str(), options);
  fs::remove_all(bundle);
  CHECK(contains(error, "ERR_DIAD_INVALID_ARGUMENT: The bundle base"));
  CHECK(contains(error, "has no evidence in its manifest"));
}
