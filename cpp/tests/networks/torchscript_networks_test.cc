// Tests the base bundle's networks as TorchScript.
#include <ATen/TensorOperators.h>
#include <ATen/ops/einsum.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/jit/api/module.h>
#include <unistd.h>

#include <filesystem>
#include <string>

#include "networks/networks.h"
#include "random_tensor.h"
#include "support.h"

namespace {

diad::Bundle base_bundle() {
  return diad::open_bundle(std::filesystem::path(DIAD_FIXTURES) / ".." / ".." / ".." / "models" / "base",
                           false);
}

// A bundle of the base networks with `file` replaced; its folder is deleted with the object.
class BundleWith {
 public:
  explicit BundleWith(const torch::jit::Module& network, const std::string& file = "encoder.pt") {
    const std::filesystem::path of_base = bundle_.folder;
    bundle_.folder = std::filesystem::temp_directory_path() / (std::string("diad-networks-")
                                                                   .append(std::to_string(getpid()))
                                                                   .append("-")
                                                                   .append(std::to_string(made++)));
    std::filesystem::create_directories(bundle_.folder);
    for (const char* name : diad::kModuleFiles) {
      std::filesystem::copy(of_base / name, bundle_.folder / name,
                            std::filesystem::copy_options::overwrite_existing);
    }
    network.save((bundle_.folder / file).string());
  }
  BundleWith(const BundleWith&) = delete;
  BundleWith& operator=(const BundleWith&) = delete;
  ~BundleWith() {
    std::error_code ignored;
    std::filesystem::remove_all(bundle_.folder, ignored);
  }
  [[nodiscard]] const diad::Bundle& bundle() const { return bundle_; }
  [[nodiscard]] diad::Bundle& bundle() { return bundle_; }

 private:
  static inline int made = 0;
  diad::Bundle bundle_ = base_bundle();
};

}  // namespace

TEST_CASE("features are extracted in float32 for every precision") {
  const c10::InferenceMode guard;
  const diad::Bundle bundle = base_bundle();
  const at::Tensor x = random_tensor({1, 3, 256, 256}, 1), z = random_tensor({1, 48, 16, 16}, 2);
  const auto exact = diad::load_networks(bundle, c10::Device(c10::kCPU), {});
  const diad::Features expected = exact->extract(x);
  for (const c10::ScalarType precision : {c10::kBFloat16, c10::kHalf}) {
    const auto modules = diad::load_networks(bundle, c10::Device(c10::kCPU), {precision});
    CHECK((modules->decode(z.to(precision)).scalar_type() == precision));
    const diad::Features features = modules->extract(x);
    for (size_t i = 0; i < features.size(); ++i) CHECK(features[i].equal(expected[i]));
  }
}

TEST_CASE("an error inside a network includes the traceback after the module has been released") {
  const c10::InferenceMode guard;
  const diad::Bundle bundle = base_bundle();
  const std::unique_ptr<diad::Networks> modules = diad::load_networks(bundle, c10::Device(c10::kCPU), {});
  const at::Tensor hint = modules->guide(at::ones({1, 3, 256, 256})), z = at::ones({1, 48, 16, 16});
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

TEST_CASE("inlines nested method calls, also in branches, with weights that are shared or equal") {
  const c10::InferenceMode guard;
  torch::jit::Module network("__torch__.Network");
  const at::Tensor weight = random_tensor({4}, 1);
  network.register_parameter("weight", weight, /*is_buffer=*/true);
  network.register_parameter("alike", weight.clone(), /*is_buffer=*/true);
  network.define(R"(
    def scaled(self, x):
      return x * self.weight + self.alike
    def twice(self, x):
      y = self.scaled(x)
      y.add_(1.0)
      return self.scaled(y)
    def forward(self, x):
      y = self.twice(x)
      if x.size(0) > 1:
        y = self.twice(self.scaled(y))
      else:
        y = y - self.weight
      return y
  )");
  const BundleWith other(network);
  const auto modules = diad::load_networks(other.bundle(), c10::Device(c10::kCPU), {});
  const auto scaled = [&](const at::Tensor& x) { return x * weight + weight; };
  const auto twice = [&](const at::Tensor& x) { return scaled(scaled(x) + 1.0); };
  for (int round = 0; round < 2; ++round) {
    const at::Tensor one = random_tensor({1, 4}, 2), two = random_tensor({2, 4}, 3);
    CHECK(modules->encode(one).equal(twice(one) - weight));
    CHECK(modules->encode(two).equal(twice(scaled(twice(two)))));
  }
}

TEST_CASE("rejects chains of operations that would overflow the interpreter's stack") {
  const c10::InferenceMode guard;
  const auto chain = [](int64_t length) {
    std::string text = "def forward(self, x):\n";
    for (int64_t i = 0; i < length; ++i) text += "  x = x + self.one\n";
    torch::jit::Module network("__torch__.Chain");
    network.register_parameter("one", at::ones({1}), /*is_buffer=*/true);
    network.define(text + "  return x\n");
    return network;
  };
  const BundleWith good(chain(4000));
  CHECK(
      diad::load_networks(good.bundle(), c10::Device(c10::kCPU), {})->encode(at::zeros({1})).item<float>() ==
      4000);
  const BundleWith hostile(chain(6000));
  CHECK(contains(error_of([&] { (void)diad::load_networks(hostile.bundle(), c10::Device(c10::kCPU), {}); }),
                 "ERR_DIAD_BUNDLE_INVALID: encoder.pt: Expected at most 5000 operations"));
}

TEST_CASE("computes vectors with the extractor's method embed if the manifest has evidence") {
  const c10::InferenceMode guard;
  torch::jit::Module network("__torch__.Extractor");
  network.register_parameter("weight", random_tensor({5, 3, 1, 1}, 1), /*is_buffer=*/true);
  network.define(R"(
    def forward(self, x):
      return (x, torch.avg_pool2d(x, 2), torch.avg_pool2d(x, 4))
    def embed(self, maps: Tuple[Tensor, Tensor, Tensor]):
      a, b, c = maps
      return torch.conv2d(b, self.weight) + c.mean()
  )");
  BundleWith other(network, "extractor.pt");
  const at::Tensor x = random_tensor({2, 3, 8, 8}, 2);
  other.bundle().manifest.evidence.reset();
  const auto plain = diad::load_networks(other.bundle(), c10::Device(c10::kCPU), {});
  CHECK(contains(error_of([&] { (void)plain->embed(plain->extract(x)); }),
                 "ERR_DIAD_BUNDLE_INVALID: extractor.pt has no method embed"));
  other.bundle().manifest.evidence = diad::EvidenceSettings{};
  const auto modules = diad::load_networks(other.bundle(), c10::Device(c10::kCPU), {});
  for (int round = 0; round < 2; ++round) {
    const diad::Features maps = modules->extract(x);
    const at::Tensor weight = random_tensor({5, 3, 1, 1}, 1);
    const at::Tensor expected = at::einsum("nchw,kc->nkhw", {maps[1], weight.view({5, 3})}) + maps[2].mean();
    const at::Tensor vectors = modules->embed(maps);
    REQUIRE(vectors.sizes() == expected.sizes());
    CHECK((vectors - expected).abs().max().item<float>() < 1e-5F);
  }
}

TEST_CASE("rejects a manifest with evidence if the extractor has no method embed") {
  torch::jit::Module network("__torch__.Extractor");
  network.define("def forward(self, x):\n  return (x, x, x)\n");
  BundleWith other(network, "extractor.pt");
  other.bundle().manifest.evidence = diad::EvidenceSettings{};
  CHECK(contains(error_of([&] { (void)diad::load_networks(other.bundle(), c10::Device(c10::kCPU), {}); }),
                 "ERR_DIAD_BUNDLE_INVALID: extractor.pt has no method embed"));
}
