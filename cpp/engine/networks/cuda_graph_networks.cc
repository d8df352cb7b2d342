#include "networks/cuda_graph_networks.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <optional>
#include <stdexcept>

#include "cuda/device_graph.h"
#include "support/device.h"
#include "support/error_translation.h"

namespace diad {

namespace {

constexpr std::array<int64_t, 7> kBatches{1, 2, 4, 8, 16, 32, 64};  // extract() gets two images for each

// Pads a batch to `count` images by repeating the last image.
at::Tensor filled_up(const at::Tensor& images, int64_t count) {
  const int64_t given = images.size(0);
  if (given == count) return images;
  std::vector<int64_t> sizes(static_cast<size_t>(images.dim()), -1);
  sizes[0] = count - given;
  return at::cat({images, images.narrow(0, given - 1, 1).expand(sizes)});
}

// Compares relative to the norm: rounding can differ if a device selects other kernels.
bool same_result(const Tensors& a, const Tensors& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    const double tolerance = a[i].scalar_type() == at::kFloat ? 1e-5 : 1e-2;
    const at::Tensor expected = b[i].to(at::kFloat), difference = a[i].to(at::kFloat) - expected;
    if (!(difference.norm().item<double>() <= tolerance * expected.norm().item<double>()))
      return false;  // also for NaN
  }
  return true;
}

// State shared by the recordings of one model. They run one after the other and can share memory: within one
// pool, an allocator reuses a block only on the stream that first received it.
struct Shared {
  DeviceGraphs graphs;
  std::optional<c10::Stream> stream;  // capture is not allowed on the default stream
  DeviceGraph::Pool pool{0, 0};       // lives as long as one of its recordings
  int recordings = 0;                 // in the pool
  bool broken = false;  // a recording failed to end: the allocator might consider it still active
};

class GraphRecording final : public Recording {
 public:
  explicit GraphRecording(std::shared_ptr<Shared> shared)
      : shared_(std::move(shared)), graph_(shared_->graphs()) {}
  ~GraphRecording() override {
    if (in_pool_ && --shared_->recordings == 0) shared_->pool = {0, 0};
  }

  void begin() {
    whole([this] { graph_->begin(shared_->pool); });
  }

  void end() {
    whole([this] { graph_->end(); });
    shared_->pool = graph_->pool();
    ++shared_->recordings;
    in_pool_ = true;
  }

  void replay() override { graph_->replay(); }

 private:
  template <typename Action>
  void whole(const Action& action) {
    try {
      action();
    } catch (...) {
      shared_->broken = true;
      throw;
    }
  }

  std::shared_ptr<Shared> shared_;
  std::unique_ptr<DeviceGraph> graph_;
  bool in_pool_ = false;
};

std::unique_ptr<Recording> record_graph(c10::Device device, const std::shared_ptr<Shared>& shared,
                                        const std::function<Tensors()>& work) {
  if (shared->broken) throw std::runtime_error("an earlier graph capture failed to end");
  wait_for(device);
  if (!shared->stream)
    shared->stream = c10::impl::VirtualGuardImpl(device.type()).getStreamFromGlobalPool(device);
  const c10::StreamGuard stream(*shared->stream);
  auto recording = std::make_unique<GraphRecording>(shared);
  recording->begin();
  try {
    recording->outputs = work();
  } catch (...) {
    try {
      recording->end();
    } catch (const std::exception&) {  // keep the first error
    }
    throw;
  }
  recording->end();
  return recording;
}

}  // namespace

Recorder graph_recorder(c10::Device device) {
  const auto shared = std::make_shared<Shared>();
  shared->graphs = device_graphs(device);
  if (shared->graphs)
    return
        [device, shared](const std::function<Tensors()>& work) { return record_graph(device, shared, work); };
  if (!device.is_cpu()) TORCH_WARN("diad: this LibTorch cannot capture graphs on ", device.str());
  return {};
}

CapturedModules::CapturedModules(std::unique_ptr<Networks> plain, Recorder recorder)
    : plain_(std::move(plain)), recorder_(std::move(recorder)) {}

Tensors CapturedModules::run(Method method, int64_t step, const Tensors& inputs, const Compute& compute) {
  const int64_t count = inputs.front().size(0);
  const auto* const batch =
      std::find_if(kBatches.begin(), kBatches.end(), [count](int64_t size) { return size >= count; });
  if (count == 0 || batch == kBatches.end()) return compute(inputs);
  const auto [found, is_new] = known_.try_emplace({method, step, *batch});
  Known& known = found->second;
  if (!is_new && !known.recording) return compute(inputs);
  Tensors outputs;
  if (is_new) {
    try {
      for (const at::Tensor& input : inputs) known.inputs.push_back(filled_up(input, *batch).clone());
      outputs = run_first(known, compute);
    } catch (...) {  // cancelled, or out of memory: the next call tries again
      known_.erase(found);
      throw;
    }
  } else {
    for (size_t i = 0; i < inputs.size(); ++i) known.inputs[i].copy_(filled_up(inputs[i], *batch));
    known.recording->replay();
    for (const at::Tensor& output : known.recording->outputs) outputs.push_back(output.clone());
  }
  for (at::Tensor& output : outputs) output = output.narrow(0, 0, count);
  return outputs;
}

// Runs without a graph, which also makes libraries select their kernels; then captures a graph and compares.
Tensors CapturedModules::run_first(Known& known, const Compute& compute) {
  Tensors outputs = compute(known.inputs);
  try {
    std::unique_ptr<Recording> recording = recorder_([&] { return compute(known.inputs); });
    recording->replay();
    if (!same_result(recording->outputs, outputs))
      throw std::runtime_error("the captured graph returned a different result");
    known.recording = std::move(recording);
  } catch (const std::exception& error) {
    TORCH_WARN("diad: running without a graph for inputs of ", known.inputs.front().sizes(), ": ",
               describe_failure(error).message);
  }
  if (!known.recording) known.inputs.clear();
  return outputs;
}

at::Tensor CapturedModules::encode(const at::Tensor& x) {
  return run(Method::kEncode, 0, {x},
             [this](const Tensors& in) { return Tensors{plain_->encode(in[0])}; })[0];
}

at::Tensor CapturedModules::guide(const at::Tensor& x) {
  return run(Method::kGuide, 0, {x}, [this](const Tensors& in) { return Tensors{plain_->guide(in[0])}; })[0];
}

at::Tensor CapturedModules::denoise(const at::Tensor& z, const at::Tensor& hint, int64_t step) {
  return run(Method::kDenoise, step, {z, hint},
             [this, step](const Tensors& in) { return Tensors{plain_->denoise(in[0], in[1], step)}; })[0];
}

at::Tensor CapturedModules::decode(const at::Tensor& z) {
  return run(Method::kDecode, 0, {z},
             [this](const Tensors& in) { return Tensors{plain_->decode(in[0])}; })[0];
}

Features CapturedModules::extract(const at::Tensor& x) {
  const Tensors maps = run(Method::kExtract, 0, {x}, [this](const Tensors& in) {
    const Features features = plain_->extract(in[0]);
    return Tensors{features[0], features[1], features[2]};
  });
  return {maps[0], maps[1], maps[2]};
}

at::Tensor CapturedModules::embed(const Features& maps) {
  return run(Method::kEmbed, 0, {maps[0], maps[1], maps[2]},
             [this](const Tensors& in) { return Tensors{plain_->embed({in[0], in[1], in[2]})}; })[0];
}

}  // namespace diad
