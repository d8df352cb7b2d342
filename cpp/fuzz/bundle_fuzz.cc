// Fuzzes open_bundle with arbitrary text as the manifest of a folder with files: opens it or rejects it with
// a bundle error code.
#include <cstdint>
#include <cstdlib>

#include "bundle/bundle.h"
#include "scratch_folder.h"
#include "support/engine_error.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  const auto folder = scratch_folder();
  static const bool filled = [&] {
    for (const char* name : diad::kModuleFiles) write_file(folder / name, "stub");
    std::filesystem::create_directories(folder / "golden");
    write_file(folder / "golden" / "000.png", "stub");
    return true;
  }();
  if (!filled) return 0;
  write_file(folder / "manifest.json", {reinterpret_cast<const char*>(bytes), size});
  try {
    (void)diad::open_bundle(folder, (size & 1) != 0);
  } catch (const diad::EngineError& error) {
    const std::string code = error.code();
    if (code != diad::code::kBundleInvalid && code != diad::code::kBundleCorrupt) std::abort();
  }
  return 0;
}
