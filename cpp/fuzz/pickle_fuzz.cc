// Fuzzes check_pickle with arbitrary bytes: accepts them or rejects them as invalid or corrupt, without
// interpreting them.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "bundle/pickle_validator.h"
#include "support/engine_error.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  try {
    diad::check_pickle({reinterpret_cast<const char*>(bytes), size}, "data.pkl");
  } catch (const diad::EngineError& error) {
    const std::string code = error.code();
    if (code != diad::code::kBundleInvalid && code != diad::code::kBundleCorrupt) std::abort();
  }
  return 0;
}
