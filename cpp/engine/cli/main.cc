// diad-engine: runs the engine without Node, for profiling and for machines without Node.
#include <cstdio>
#include <filesystem>
#include <future>
#include <iostream>
#include <nlohmann/json.hpp>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "diad_engine.h"
#include "netpbm.h"
#include "npy.h"

namespace {

using nlohmann::json;

constexpr const char* kUsage =
    "diad-engine score --bundle DIR [--seed N] [--device D] [--precision P] [--threads N] [--repeat N] "
    "[--dump DIR]\n"
    "                  FILE...\n"
    "diad-engine profile --bundle DIR [--device D] [--precision P] [--threads N] [--repeat N] FILE\n"
    "diad-engine info  --bundle DIR [--device D] [--precision P] [--threads N]\n"
    "diad-engine version\n\n"
    "FILE is a binary PGM or PPM image. Prints one JSON object a line; --dump writes every stage as "
    "NNN.<stage>.npy,\n"
    "NNN the file's place on the command line. profile scores FILE --repeat times without and with a clock "
    "on every operator.\n";

struct Arguments {
  std::string command, bundle, device = "auto", precision = "float32", dump;
  uint64_t seed = 0;
  int threads = 0, repeat = 1;
  std::vector<std::string> files;
};

int whole_number(const std::string& option, const std::string& word, int low) {
  try {
    size_t used = 0;
    const int value = std::stoi(word, &used);
    if (used == word.size() && value >= low) return value;
  } catch (const std::logic_error&) {  // not an integer, or out of range: reported below
  }
  throw std::runtime_error("Expected a whole number of at least " + std::to_string(low) + " for " + option +
                           " but received " + word);
}

uint64_t seed_of(const std::string& word) {
  try {
    size_t used = 0;
    const unsigned long long value = std::stoull(word, &used);
    if (used == word.size() && word.front() != '-') return value;
  } catch (const std::logic_error&) {  // not an integer, or out of range: reported below
  }
  throw std::runtime_error("Expected a whole number from 0 to 2^64 - 1 for --seed but received " + word);
}

Arguments parse(const std::vector<std::string>& words) {
  Arguments arguments;
  if (words.empty()) throw std::runtime_error(kUsage);
  arguments.command = words[0];
  for (size_t i = 1; i < words.size(); ++i) {
    const std::string& word = words[i];
    if (!word.starts_with("--")) {
      arguments.files.push_back(word);
      continue;
    }
    if (i + 1 == words.size()) throw std::runtime_error(word + " needs a value");
    const std::string& value = words[++i];
    if (word == "--bundle") arguments.bundle = value;
    else if (word == "--device") arguments.device = value;
    else if (word == "--precision") arguments.precision = value;
    else if (word == "--dump") arguments.dump = value;
    else if (word == "--seed") arguments.seed = seed_of(value);
    else if (word == "--threads") arguments.threads = whole_number(word, value, 0);
    else if (word == "--repeat") arguments.repeat = whole_number(word, value, 1);
    else throw std::runtime_error("Unknown option " + word + "\n\n" + kUsage);
  }
  return arguments;
}

[[noreturn]] void fail() {
  const diad_error error = diad_engine_last_error();
  throw std::runtime_error(std::string(error.code) + ": " + error.message);
}

diad_engine* load(const Arguments& arguments) {
  if (arguments.bundle.empty()) throw std::runtime_error("--bundle is needed");
  const diad_load_options options{arguments.device.c_str(),
                                  arguments.precision.c_str(),
                                  arguments.threads,
                                  1,
                                  0,
                                  1024,
                                  1,
                                  1,
                                  nullptr,
                                  0,
                                  nullptr,
                                  nullptr,
                                  nullptr};
  diad_engine* engine = nullptr;
  if (diad_engine_load(arguments.bundle.c_str(), &options, &engine) != 0) fail();
  return engine;
}

diad_result* score(diad_engine* engine, const diad::NetpbmImage& image, const Arguments& arguments) {
  std::promise<diad_result*> finished;
  diad_request request{};
  request.pixels = image.pixels.data();
  request.width = image.width;
  request.height = image.height;
  request.channels = image.channels;
  request.seed = arguments.seed;
  request.want_stages = arguments.dump.empty() ? 0 : 1;
  request.user = &finished;
  request.done = [](void* user, diad_result* result) {
    static_cast<std::promise<diad_result*>*>(user)->set_value(result);
  };
  uint64_t id = 0;
  if (diad_engine_submit(engine, &request, &id) != 0) fail();
  diad_result* result = finished.get_future().get();
  if (result->error.code != nullptr) {
    const std::string message = std::string(result->error.code) + ": " + result->error.message;
    diad_engine_result_free(result);
    throw std::runtime_error(message);
  }
  return result;
}

void dump(const diad_result& result, const std::string& folder, size_t number) {
  std::filesystem::create_directories(folder);
  char prefix[24];
  std::snprintf(prefix, sizeof prefix, "%03zu.", number);
  for (int32_t i = 0; i < result.stage_count; ++i) {
    const diad_stage& stage = result.stages[i];
    const std::span shape(stage.shape, static_cast<size_t>(stage.dimensions));
    diad::write_npy(std::filesystem::path(folder) / (prefix + std::string(stage.name) + ".npy"), shape,
                    stage.values);
  }
}

int score_files(const Arguments& arguments) {
  if (arguments.files.empty()) throw std::runtime_error("Expected at least one FILE");
  diad_engine* engine = load(arguments);
  int failures = 0;
  for (size_t i = 0; i < arguments.files.size(); ++i) {
    try {
      const diad::NetpbmImage image = diad::read_netpbm(arguments.files[i]);
      for (int k = 0; k < arguments.repeat; ++k) {
        diad_result* result = score(engine, image, arguments);
        const diad_timings& t = result->timings;
        const json timings{{"queueMs", t.queue},     {"computeMs", t.compute}, {"resizeMs", t.resize},
                           {"encodeMs", t.encode},   {"denoiseMs", t.denoise}, {"decodeMs", t.decode},
                           {"extractMs", t.extract}, {"mapMs", t.map}};
        std::cout << json{{"file", arguments.files[i]},
                          {"score", result->score},
                          {"seed", arguments.seed},
                          {"timings", timings}}
                         .dump()
                  << std::endl;
        if (!arguments.dump.empty() && k == 0) dump(*result, arguments.dump, i);
        diad_engine_result_free(result);
      }
    } catch (const std::exception& error) {
      std::cerr << "diad-engine: " << error.what() << '\n';
      failures = 1;
    }
  }
  diad_engine_close(engine);
  return failures;
}

// Mean computing time of an image over --repeat runs, in milliseconds.
double mean_ms(diad_engine* engine, const diad::NetpbmImage& image, const Arguments& arguments) {
  double sum = 0;
  for (int k = 0; k < arguments.repeat; ++k) {
    diad_result* result = score(engine, image, arguments);
    sum += result->timings.compute;
    diad_engine_result_free(result);
  }
  return sum / arguments.repeat;
}

int profile(const Arguments& arguments) {
  if (arguments.files.size() != 1)
    throw std::runtime_error("Expected one FILE but received " + std::to_string(arguments.files.size()));
  const diad::NetpbmImage image = diad::read_netpbm(arguments.files.front());
  diad_engine* engine = load(arguments);
  diad_engine_result_free(score(engine, image, arguments));
  const double plain = mean_ms(engine, image, arguments);
  if (diad_engine_profile_start() != 0) fail();
  const double profiled = mean_ms(engine, image, arguments);
  const char* const operators = diad_engine_profile_end();
  if (operators == nullptr) fail();
  json rows = json::parse(operators);
  for (json& row : rows) {  // per image
    row["calls"] = row["calls"].get<double>() / arguments.repeat;
    row["ms"] = row["ms"].get<double>() / arguments.repeat;
    if (!row["gflop"].is_null()) row["gflop"] = row["gflop"].get<double>() / arguments.repeat;
  }
  std::cout << json{{"computeMs", plain}, {"profiledMs", profiled}, {"operators", rows}}.dump() << '\n';
  diad_engine_close(engine);
  return 0;
}

int run(const Arguments& arguments) {
  if (arguments.command == "profile") return profile(arguments);
  if (arguments.command == "score") return score_files(arguments);
  if (arguments.command == "info") {
    diad_engine* engine = load(arguments);
    std::cout << diad_engine_info(engine) << '\n';
    diad_engine_close(engine);
    return 0;
  }
  if (arguments.command == "version") {
    const char* version = diad_engine_version();
    if (version == nullptr) fail();
    std::cout << version << '\n';
    return 0;
  }
  throw std::runtime_error(kUsage);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(parse({argv + 1, argv + argc}));
  } catch (const std::exception& error) {
    std::cerr << "diad-engine: " << error.what() << '\n';
    return 1;
  }
}
