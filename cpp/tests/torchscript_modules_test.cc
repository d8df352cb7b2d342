// The demo bundle's networks as TorchScript.
#include <ATen/Functions.h>
#include <c10/core/InferenceMode.h>

#include <filesystem>
#include <string>

#include "modules.h"
#include "random_tensor.h"
#include "support.h"

namespace {

diad::Bundle demo_bundle() {
  return diad::open_bundle(std::filesystem::path(DIAD_FIXTURES) / ".." / ".." / ".." / "models" / "demo", false);
}

}  // namespace

TEST_CASE("features are compared in float32, whatever the networks compute in") {
  const c10::InferenceMode guard;
  const diad::Bundle bundle = demo_bundle();
  const at::Tensor x = random_tensor({1, 3, 128, 128}, 1), z = random_tensor({1, 4, 16, 16}, 2);
  const auto exact = diad::load_torchscript(bundle, c10::Device(c10::kCPU), {});
  const diad::Features expected = exact->extract(x);
  for (const c10::ScalarType precision : {c10::kBFloat16, c10::kHalf}) {
    const auto modules = diad::load_torchscript(bundle, c10::Device(c10::kCPU), {precision});
    CHECK((modules->decode(z.to(precision)).scalar_type() == precision));
    const diad::Features features = modules->extract(x);
    for (size_t i = 0; i < features.size(); ++i) CHECK(features[i].equal(expected[i]));
  }
}

TEST_CASE("an error inside a network names the functions it passed through, long after the file's module is gone") {
  const c10::InferenceMode guard;
  const diad::Bundle bundle = demo_bundle();
  const std::unique_ptr<diad::Modules> modules = diad::load_torchscript(bundle, c10::Device(c10::kCPU), {});
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
