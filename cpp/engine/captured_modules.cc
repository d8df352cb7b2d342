#include "captured_modules.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <algorithm>
#include <array>

#if __has_include(<ATen/accelerator/Graph.h>)
#include <ATen/accelerator/Graph.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#define DIAD_HAS_GRAPHS 1
#endif

namespace diad {

namespace {

constexpr std::array<int64_t, 6> kBatches{1, 2, 4, 8, 16, 32};

// Filled up to `count` pictures with repetitions of the last.
at::Tensor filled_up(const at::Tensor& pictures, int64_t count) {
  const int64_t given = pictures.size(0);
  if (given == count) return pictures;
  std::vector<int64_t> sizes(static_cast<size_t>(pictures.dim()), -1);
  sizes[0] = count - given;
  return at::cat({pictures, pictures.narrow(0, given - 1, 1).expand(sizes)});
}

// Relative to the norm; rounding may differ where a device chooses other kernels.
bool same_result(const Tensors& a, const Tensors& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    const double tolerance = a[i].scalar_type() == at::kFloat ? 1e-5 : 1e-2;
    const at::Tensor expected = b[i].to(at::kFloat), difference = a[i].to(at::kFloat) - expected;
    if (!(difference.norm().item<double>() <= tolerance * expected.norm().item<double>())) return false;  // not-a-number: no
  }
  return true;
}

#ifdef DIAD_HAS_GRAPHS

class GraphRecording final : public Recording {
 public:
  void replay() override { graph.replay(); }

  at::accelerator::Graph graph;
};

// Recording begins and ends on a stream of its own: none may be recorded on the default one.
std::unique_ptr<Recording> record_graph(c10::Device device, at::MempoolId_t& pool, const std::function<Tensors()>& work) {
  const c10::impl::VirtualGuardImpl implementation(device.type());
  implementation.synchronizeDevice(device.index());
  const c10::StreamGuard stream(implementation.getStreamFromGlobalPool(device));
  auto recording = std::make_unique<GraphRecording>();
  recording->graph.capture_begin(pool);
  try {
    recording->outputs = work();
  } catch (...) {
    try {
      recording->graph.capture_end();
    } catch (const std::exception&) {  // it was broken off: the first error is the one to tell
    }
    throw;
  }
  recording->graph.capture_end();
  pool = recording->graph.pool();  // recordings run one after the other and can share memory
  return recording;
}

#endif

}  // namespace

Recorder graph_recorder([[maybe_unused]] c10::Device device) {
#ifdef DIAD_HAS_GRAPHS
  if (at::has_graph_impl(device.type())) {
    return [device, pool = std::make_shared<at::MempoolId_t>(0, 0)](const std::function<Tensors()>& work) {
      return record_graph(device, *pool, work);
    };
  }
#endif
  return {};
}

CapturedModules::CapturedModules(std::unique_ptr<Modules> plain, Recorder recorder)
    : plain_(std::move(plain)), recorder_(std::move(recorder)) {}

Tensors CapturedModules::run(Method method, int64_t step, const Tensors& inputs, const Compute& compute) {
  const int64_t count = inputs.front().size(0);
  const auto* const batch = std::find_if(kBatches.begin(), kBatches.end(), [count](int64_t size) { return size >= count; });
  if (count == 0 || batch == kBatches.end()) return compute(inputs);
  const auto [found, is_new] = known_.try_emplace({method, step, *batch});
  Known& known = found->second;
  if (!is_new && !known.recording) return compute(inputs);
  Tensors outputs;
  if (is_new) {
    try {
      for (const at::Tensor& input : inputs) known.inputs.push_back(filled_up(input, *batch).clone());
      outputs = run_first(known, compute);
    } catch (...) {  // interrupted, or out of memory: the next call is the first
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

// Plainly, which also makes libraries choose their kernels; then recorded and compared.
Tensors CapturedModules::run_first(Known& known, const Compute& compute) {
  Tensors outputs = compute(known.inputs);
  try {
    std::unique_ptr<Recording> recording = recorder_([&] { return compute(known.inputs); });
    recording->replay();
    if (same_result(recording->outputs, outputs)) known.recording = std::move(recording);
  } catch (const std::exception&) {  // plain execution, which has just worked, stays
  }
  if (!known.recording) known.inputs.clear();
  return outputs;
}

at::Tensor CapturedModules::encode(const at::Tensor& x) {
  return run(Method::kEncode, 0, {x}, [this](const Tensors& in) { return Tensors{plain_->encode(in[0])}; })[0];
}

at::Tensor CapturedModules::guide(const at::Tensor& x) {
  return run(Method::kGuide, 0, {x}, [this](const Tensors& in) { return Tensors{plain_->guide(in[0])}; })[0];
}

at::Tensor CapturedModules::denoise(const at::Tensor& z, const at::Tensor& hint, int64_t step) {
  return run(Method::kDenoise, step, {z, hint},
             [this, step](const Tensors& in) { return Tensors{plain_->denoise(in[0], in[1], step)}; })[0];
}

at::Tensor CapturedModules::decode(const at::Tensor& z) {
  return run(Method::kDecode, 0, {z}, [this](const Tensors& in) { return Tensors{plain_->decode(in[0])}; })[0];
}

Features CapturedModules::extract(const at::Tensor& x) {
  const Tensors maps = run(Method::kExtract, 0, {x}, [this](const Tensors& in) {
    const Features features = plain_->extract(in[0]);
    return Tensors{features[0], features[1], features[2]};
  });
  return {maps[0], maps[1], maps[2]};
}

}  // namespace diad
