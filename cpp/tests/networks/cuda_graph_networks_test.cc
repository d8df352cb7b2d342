// Tests CapturedModules with recorders that repeat the work themselves: the memory behavior of a device's
// graphs, without a device.
#include "networks/cuda_graph_networks.h"

#include <ATen/TensorOperators.h>
#include <c10/core/InferenceMode.h>

#include <stdexcept>
#include <string>
#include <thread>
#include <utility>

#include "fakes/fake_device.h"
#include "random_tensor.h"
#include "support.h"
#include "support/device.h"

namespace {

using namespace diad;

// Arithmetic that distinguishes images, inputs and steps.
class Arithmetic final : public Networks {
 public:
  at::Tensor encode(const at::Tensor& x) override { return counted(2 * x); }
  at::Tensor guide(const at::Tensor& x) override { return counted(x + 1); }
  at::Tensor denoise(const at::Tensor& z, const at::Tensor& hint, int64_t step) override {
    return counted(z * (step + 1) + hint);
  }
  at::Tensor decode(const at::Tensor& z) override { return counted(z - 3); }
  Features extract(const at::Tensor& x) override { return {counted(x), x * x, x.sum({2, 3})}; }
  at::Tensor embed(const Features& maps) override {
    return counted(maps[0] + maps[1].mean({2, 3}, true) - maps[2]);
  }

  int calls = 0;

 private:
  at::Tensor counted(at::Tensor result) {
    ++calls;
    return result;
  }
};

// Repeats the work into the same tensors, like a device's graph.
class Repetition final : public Recording {
 public:
  explicit Repetition(std::function<Tensors()> work) : work_(std::move(work)) { outputs = work_(); }

  void replay() override {
    const Tensors again = work_();
    for (size_t i = 0; i < again.size(); ++i) outputs[i].copy_(again[i]);
  }

 private:
  std::function<Tensors()> work_;
};

struct Counting {
  int recordings = 0;
  Recorder recorder() {
    return [this](const std::function<Tensors()>& work) {
      ++recordings;
      return std::make_unique<Repetition>(work);
    };
  }
};

at::Tensor images(int64_t count, uint64_t seed) { return random_tensor({count, 2, 4, 4}, seed); }

}  // namespace

TEST_CASE("captured networks match networks without graphs for all batch sizes and repeated calls") {
  const c10::InferenceMode guard;
  Counting counting;
  Arithmetic plain;
  CapturedModules modules(std::make_unique<Arithmetic>(), counting.recorder());
  uint64_t seed = 0;
  for (int round = 0; round < 3; ++round) {
    for (const int64_t count : {1, 3, 2, 4, 70}) {
      const at::Tensor x = images(count, ++seed), hint = images(count, ++seed);
      CHECK(modules.encode(x).equal(plain.encode(x)));
      CHECK(modules.guide(x).equal(plain.guide(x)));
      for (const int64_t step : {0, 1, 9})
        CHECK(modules.denoise(x, hint, step).equal(plain.denoise(x, hint, step)));
      CHECK(modules.decode(x).equal(plain.decode(x)));
      const Features found = modules.extract(x), expected = plain.extract(x);
      for (size_t i = 0; i < found.size(); ++i) CHECK(found[i].equal(expected[i]));
    }
  }
  CHECK(counting.recordings == 3 * 7);  // batches of 1, 2 and 4; 70 images exceed the largest
}

TEST_CASE("the next call does not change an earlier result") {
  const c10::InferenceMode guard;
  Counting counting;
  CapturedModules modules(std::make_unique<Arithmetic>(), counting.recorder());
  const at::Tensor first = images(2, 1), second = images(2, 2);
  static_cast<void>(modules.encode(first));
  const at::Tensor kept = modules.encode(first);
  static_cast<void>(modules.encode(second));
  CHECK(kept.equal(2 * first));
}

TEST_CASE("falls back to running without graphs, permanently, when a capture fails or differs") {
  const c10::InferenceMode guard;
  int tries = 0;
  const Recorder failing = [&](const std::function<Tensors()>&) -> std::unique_ptr<Recording> {
    ++tries;
    throw std::runtime_error("operation not permitted when stream is capturing");
  };
  const Recorder wrong = [&](const std::function<Tensors()>& work) {
    ++tries;
    return std::make_unique<Repetition>([work] {
      Tensors outputs = work();
      for (at::Tensor& output : outputs) output = output * 1.01;
      return outputs;
    });
  };
  const Recorder undefined = [&](const std::function<Tensors()>& work) {
    ++tries;
    return std::make_unique<Repetition>([work] {
      Tensors outputs = work();
      for (at::Tensor& output : outputs) output = output / 0;
      return outputs;
    });
  };
  for (const Recorder& recorder : {failing, wrong, undefined}) {
    tries = 0;
    CapturedModules modules(std::make_unique<Arithmetic>(), recorder);
    for (uint64_t seed = 1; seed < 4; ++seed) {
      const at::Tensor x = images(2, seed);
      CHECK(modules.encode(x).equal(2 * x));
    }
    CHECK(tries == 1);
  }
}

TEST_CASE("an error of the networks is rethrown, and the next call is captured") {
  const c10::InferenceMode guard;
  Counting counting;
  CapturedModules modules(std::make_unique<Arithmetic>(), counting.recorder());
  const at::Tensor z = images(1, 1), of_another_size = random_tensor({1, 2, 5, 5}, 2);
  CHECK_THROWS(modules.denoise(z, of_another_size, 0));
  const at::Tensor hint = images(1, 3);
  CHECK(modules.denoise(z, hint, 0).equal(z + hint));
  CHECK(counting.recordings == 1);
}

TEST_CASE("there is no recorder for a CPU, or for CUDA in a CPU build of LibTorch") {
  CHECK_FALSE(graph_recorder(c10::Device(c10::kCPU)));
  CHECK_FALSE(graph_recorder(c10::Device(c10::kCUDA, 0)));
}

#if __has_include(<ATen/accelerator/Graph.h>)

TEST_CASE("the captures of a device share one non-default stream and one pool and return correct results") {
  const c10::InferenceMode guard;
  fake_device::begin();
  CapturedModules modules(std::make_unique<Arithmetic>(), graph_recorder(fake_device::kDevice));
  const at::Tensor x = images(2, 1);
  for (int i = 0; i < 2; ++i) {
    CHECK(modules.encode(x).equal(2 * x));
    CHECK(modules.decode(x).equal(x - 3));
    CHECK(modules.denoise(x, x, 3).equal(4 * x + x));
  }
  const std::vector<std::string> told = fake_device::told();
  REQUIRE(told.size() == 3 * 4);
  const std::string pool = told[1].substr(told[1].find(", pool"));
  for (size_t i = 0; i < told.size(); i += 4) {
    CHECK(std::vector<std::string>(told.begin() + i, told.begin() + i + 4) ==
          std::vector<std::string>{"stream 1", "record on 1" + pool, "end" + pool, "stream 0"});
  }
}

TEST_CASE("a pool is not reused after its last capture is destroyed") {
  const c10::InferenceMode guard;
  fake_device::begin();
  const Recorder recorder = graph_recorder(fake_device::kDevice);
  const auto work = [] { return Tensors{images(1, 1)}; };
  std::unique_ptr<Recording> first = recorder(work), second = recorder(work);
  first.reset();
  const std::unique_ptr<Recording> third = recorder(work);
  second.reset();
  CHECK_NOTHROW(recorder(work));
  CHECK_NOTHROW(recorder(work));
}

TEST_CASE(
    "captures continue after an error in the captured work, but not after a capture that failed to end") {
  const c10::InferenceMode guard;
  fake_device::begin();
  const Recorder recorder = graph_recorder(fake_device::kDevice);
  const auto work = [] { return Tensors{images(1, 1)}; };
  CHECK_THROWS_WITH(recorder([]() -> Tensors { throw std::runtime_error("of an operator"); }),
                    "of an operator");
  CHECK_NOTHROW(recorder(work));
  CHECK_THROWS_WITH(recorder([]() -> Tensors {
                      fake_device::wait_for_all();
                      return {};
                    }),
                    doctest::Contains("not permitted when stream is capturing"));
  const size_t before = fake_device::told().size();
  CHECK_THROWS_WITH(recorder(work), "an earlier graph capture failed to end");
  CHECK(fake_device::told().size() == before);
  CHECK_NOTHROW(graph_recorder(fake_device::kDevice)(work));  // of another model
}

TEST_CASE("another model can synchronize its own work during a capture") {
  const c10::InferenceMode guard;
  fake_device::begin();
  const Recorder recorder = graph_recorder(fake_device::kDevice);
  CHECK_NOTHROW(recorder([] {
    std::thread([] { wait_for(fake_device::kDevice); }).join();
    return Tensors{images(1, 1)};
  }));
}

#endif

TEST_CASE("embed is captured like the other methods") {
  const c10::InferenceMode guard;
  Counting counting;
  CapturedModules modules(std::make_unique<Arithmetic>(), counting.recorder());
  const Features maps{random_tensor({3, 2, 4, 4}, 1), random_tensor({3, 2, 2, 2}, 2),
                      random_tensor({3, 2, 1, 1}, 3)};
  for (int round = 0; round < 2; ++round)
    CHECK(modules.embed(maps).equal(maps[0] + maps[1].mean({2, 3}, true) - maps[2]));
  CHECK(counting.recordings == 1);
}
