// Fuzzes parse_manifest with arbitrary text: returns a manifest within its bounds or throws
// ERR_DIAD_BUNDLE_INVALID.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "bundle/bundle.h"
#include "support/engine_error.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  try {
    const diad::Manifest manifest = diad::parse_manifest({reinterpret_cast<const char*>(bytes), size});
    if (manifest.steps.empty() || manifest.latent_size > manifest.image_size || manifest.image_size > 4096)
      std::abort();
  } catch (const diad::EngineError& error) {
    if (error.code() != std::string(diad::code::kBundleInvalid)) std::abort();
  }
  return 0;
}
