// The engine library, opened at run time after LibTorch; one per process.
#pragma once

#include <string>

#include "diad_engine.h"

namespace diad_addon {

// Functions of the C interface, resolved from the opened library.
struct EngineApi {
  decltype(&diad_engine_abi) abi = nullptr;
  decltype(&diad_engine_version) version = nullptr;
  decltype(&diad_engine_load) load = nullptr;
  decltype(&diad_engine_info) info = nullptr;
  decltype(&diad_engine_submit) submit = nullptr;
  decltype(&diad_engine_cancel) cancel = nullptr;
  decltype(&diad_engine_stats) stats = nullptr;
  decltype(&diad_engine_close) close = nullptr;
  decltype(&diad_engine_result_free) result_free = nullptr;
  decltype(&diad_engine_last_error) last_error = nullptr;
  decltype(&diad_calibrator_new) calibrator_new = nullptr;
  decltype(&diad_calibrator_finish) calibrator_finish = nullptr;
  decltype(&diad_calibration_free) calibration_free = nullptr;
  decltype(&diad_calibrator_free) calibrator_free = nullptr;
};

struct CodedError {
  std::string code;  // ERR_DIAD_...; empty: no error
  std::string message;
};

// Bounds the spinning of OpenMP threads. Where oneDNN computes (bfloat16, CPUs without AVX2), OpenMP's
// threads spin at each barrier, by default for milliseconds, which slows inference down several times on a
// busy machine. Without spinning, waking them in every loop costs more than the work of a small model. This
// sets a fraction of a millisecond. libgomp reads the setting once, when LibTorch loads it. A value set by
// the user is kept. Call it on the JavaScript thread, which also reads and writes the environment.
void bound_spinning();

// Opens <libtorch_folder>/libtorch.so (libtorch.dylib, torch.dll), then the engine. Opens them once per
// process: later calls succeed only with the same files. Blocks for about 0.3 s. Any thread.
CodedError open_engine_library(const std::string& libtorch_folder, const std::string& engine_path);

// Returns the opened library, or nullptr before a successful open_engine_library.
const EngineApi* engine_api();

}  // namespace diad_addon
