// The demo bundle's networks as TorchScript.
#include <ATen/Functions.h>
#include <c10/core/InferenceMode.h>

#include <filesystem>
#include <string>

#include "modules.h"
#include "support.h"

TEST_CASE("an error inside a network names the functions it passed through, long after the file's module is gone") {
  const c10::InferenceMode guard;
  const std::filesystem::path demo = std::filesystem::path(DIAD_FIXTURES) / ".." / ".." / ".." / "models" / "demo";
  const diad::Bundle bundle = diad::open_bundle(demo, false);
  const std::unique_ptr<diad::Modules> modules = diad::load_torchscript(bundle, c10::Device(c10::kCPU), c10::kFloat);
  const at::Tensor hint = modules->guide(at::ones({1, 3, 128, 128})), z = at::ones({1, 4, 16, 16});
  constexpr int64_t kNoStep = 1000;
  for (int round = 0; round < 2; ++round) {
    std::string told;
    try {
      static_cast<void>(modules->denoise(z, hint, kNoStep));
    } catch (const std::exception& error) {
      told = error.what();
    }
    CAPTURE(told);
    CHECK(contains(told, "Traceback of TorchScript"));
    CHECK(contains(told, "in forward"));
  }
}
