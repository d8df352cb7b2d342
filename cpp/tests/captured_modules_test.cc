// CapturedModules with recorders that repeat the work themselves: what a device's graphs do to memory, without a device.
#include "captured_modules.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <c10/core/InferenceMode.h>

#include <stdexcept>
#include <utility>

#include "random_tensor.h"
#include "support.h"

namespace {

using namespace diad;

// Arithmetic in which pictures, inputs and steps can be told apart.
class Arithmetic final : public Modules {
 public:
  at::Tensor encode(const at::Tensor& x) override { return counted(2 * x); }
  at::Tensor guide(const at::Tensor& x) override { return counted(x + 1); }
  at::Tensor denoise(const at::Tensor& z, const at::Tensor& hint, int64_t step) override { return counted(z * (step + 1) + hint); }
  at::Tensor decode(const at::Tensor& z) override { return counted(z - 3); }
  Features extract(const at::Tensor& x) override { return {counted(x), x * x, x.sum({2, 3})}; }

  int calls = 0;

 private:
  at::Tensor counted(at::Tensor result) {
    ++calls;
    return result;
  }
};

// Repeats the work into the same tensors, as a device's graph does.
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

at::Tensor pictures(int64_t count, uint64_t seed) { return random_tensor({count, 2, 4, 4}, seed); }

}  // namespace

TEST_CASE("recorded modules give each picture what plain ones do, whatever the batch, and again") {
  const c10::InferenceMode guard;
  Counting counting;
  Arithmetic plain;
  CapturedModules modules(std::make_unique<Arithmetic>(), counting.recorder());
  uint64_t seed = 0;
  for (int round = 0; round < 3; ++round) {
    for (const int64_t count : {1, 3, 2, 4, 40}) {
      const at::Tensor x = pictures(count, ++seed), hint = pictures(count, ++seed);
      CHECK(modules.encode(x).equal(plain.encode(x)));
      CHECK(modules.guide(x).equal(plain.guide(x)));
      for (const int64_t step : {0, 1, 9}) CHECK(modules.denoise(x, hint, step).equal(plain.denoise(x, hint, step)));
      CHECK(modules.decode(x).equal(plain.decode(x)));
      const Features found = modules.extract(x), expected = plain.extract(x);
      for (size_t i = 0; i < found.size(); ++i) CHECK(found[i].equal(expected[i]));
    }
  }
  CHECK(counting.recordings == 3 * 7);  // batches of 1, 2 and 4; 40 pictures are more than any
}

TEST_CASE("a result is the caller's: the next call does not change it") {
  const c10::InferenceMode guard;
  Counting counting;
  CapturedModules modules(std::make_unique<Arithmetic>(), counting.recorder());
  const at::Tensor first = pictures(2, 1), second = pictures(2, 2);
  static_cast<void>(modules.encode(first));
  const at::Tensor kept = modules.encode(first);
  static_cast<void>(modules.encode(second));
  CHECK(kept.equal(2 * first));
}

TEST_CASE("where recording fails or gives something else, execution stays plain and nothing is tried again") {
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
      const at::Tensor x = pictures(2, seed);
      CHECK(modules.encode(x).equal(2 * x));
    }
    CHECK(tries == 1);
  }
}

TEST_CASE("an error of the modules is the caller's, and the next call is recorded as the first would have been") {
  const c10::InferenceMode guard;
  Counting counting;
  CapturedModules modules(std::make_unique<Arithmetic>(), counting.recorder());
  const at::Tensor z = pictures(1, 1), of_another_size = random_tensor({1, 2, 5, 5}, 2);
  CHECK_THROWS(modules.denoise(z, of_another_size, 0));
  const at::Tensor hint = pictures(1, 3);
  CHECK(modules.denoise(z, hint, 0).equal(z + hint));
  CHECK(counting.recordings == 1);
}

TEST_CASE("a CPU has no recorder") { CHECK_FALSE(graph_recorder(c10::Device(c10::kCPU))); }
