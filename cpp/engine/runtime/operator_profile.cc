#include "runtime/operator_profile.h"

#include <ATen/core/Tensor.h>
#include <ATen/record_function.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <vector>

#include "cpu/packed_layers.h"
#include "support/device.h"

namespace diad {

namespace {

using Clock = std::chrono::steady_clock;

struct Row {
  int64_t calls = 0;
  double ms = 0;
  std::optional<double> gflop;
};

struct Profile {
  std::mutex mutex;
  std::map<std::string, Row> rows;
  at::CallbackHandle handle = at::INVALID_CALLBACK_HANDLE;
};

Profile& profile() {
  static auto* one = new Profile;  // never destroyed: threads can outlive static destructors
  return *one;
}

// Nesting depth of the operators running on this thread.
thread_local int depth = 0;

struct Call : at::ObserverContext {
  std::string label;  // empty inside another operator
  std::optional<double> gflop;
  Clock::time_point started;
  c10::Device device = c10::kCPU;  // device of its tensors
};

std::string by(int64_t height, int64_t width) {
  return std::to_string(height) + " x " + std::to_string(width);
}

double gflop_of(std::initializer_list<int64_t> sizes) {
  double product = 2e-9;
  for (const int64_t size : sizes) product *= static_cast<double>(size);
  return product;
}

void describe_convolution(const at::Tensor& x, const ConvLayer& layer, Call& call) {
  const std::array<int64_t, 4> out = layer.output_size(x), weight = layer.weight_size();
  call.label = "convolution " + by(weight[2], weight[3]) + (layer.upsampled() ? " after upsampling" : "") +
               " to " + by(out[2], out[3]) + ", " + layer.kernel();
  call.gflop = gflop_of({out[0], out[2], out[3], weight[0], weight[1], weight[2], weight[3]});
}

void describe_linear(const at::Tensor& x, const LinearLayer& layer, Call& call) {
  const int64_t rows = x.numel() / x.size(-1);
  call.label = "linear, " + std::to_string(x.dim() > 1 ? x.size(-2) : 1) + " rows, " + layer.kernel();
  call.gflop = gflop_of({rows, x.size(-1), layer.out_features()});
}

// Describes operators that LibTorch computes.
void describe_other(const std::string& name, c10::ArrayRef<const c10::IValue> inputs, Call& call) {
  std::vector<at::Tensor> tensors;
  for (const c10::IValue& input : inputs) {
    if (input.isTensor() && input.toTensor().defined()) tensors.push_back(input.toTensor());
  }
  const bool attends = name == "diad::attention" || name == "aten::scaled_dot_product_attention";
  call.label = name;
  if (tensors.empty()) return;
  const at::Tensor& x = tensors.front();
  if (x.dim() == 4 && !attends) call.label += ", " + by(x.size(2), x.size(3));
  if (tensors.size() < 2) return;
  const at::Tensor& y = tensors[1];
  if ((name == "aten::matmul" || name == "aten::bmm" || name == "aten::mm") && x.dim() > 1 && y.dim() > 1) {
    call.gflop = gflop_of({x.numel(), y.size(-1)});
  } else if (name == "aten::linear") {
    call.gflop = gflop_of({x.numel(), y.size(0)});
  } else if (attends && tensors.size() > 2) {
    call.label += ", " + std::to_string(x.size(-2)) + " queries";
    call.gflop = gflop_of({x.numel(), y.size(-2)}) +
                 gflop_of({x.numel() / x.size(-1), y.size(-2), tensors[2].size(-1)});
  }
}

std::unique_ptr<at::ObserverContext> begin(const at::RecordFunction& function) {
  auto call = std::make_unique<Call>();
  if (depth++ > 0) return call;
  const std::string name = function.name();
  // The interpreter passes its whole stack.
  const c10::ArrayRef<const c10::IValue> inputs =
      function.inputs().slice(function.inputs().size() - function.num_inputs());
  if (name == "diad::convolution") {
    describe_convolution(inputs[0].toTensor(), *inputs[2].toCustomClass<ConvLayer>(), *call);
  } else if (name == "diad::linear") {
    describe_linear(inputs[0].toTensor(), *inputs[2].toCustomClass<LinearLayer>(), *call);
  } else {
    describe_other(name, inputs, *call);
  }
  for (const c10::IValue& input : inputs) {
    if (input.isTensor() && input.toTensor().defined() && !input.toTensor().is_cpu())
      call->device = input.toTensor().device();
  }
  call->started = Clock::now();
  return call;
}

void end(const at::RecordFunction&, at::ObserverContext* context) {
  const auto* const call = static_cast<Call*>(context);
  if (--depth == 0 && call != nullptr) wait_for(call->device);  // kernels run asynchronously
  const auto now = Clock::now();
  if (call == nullptr || call->label.empty()) return;
  const std::lock_guard lock(profile().mutex);
  Row& row = profile().rows[call->label];
  ++row.calls;
  row.ms += std::chrono::duration<double, std::milli>(now - call->started).count();
  if (call->gflop) row.gflop = row.gflop.value_or(0) + *call->gflop;
}

}  // namespace

void start_operator_profile() {
  (void)end_operator_profile();
  Profile& one = profile();
  const std::lock_guard lock(one.mutex);
  one.handle = at::addGlobalCallback(
      at::RecordFunctionCallback(begin, end).needsInputs(true).scopes({at::RecordScope::FUNCTION}));
}

std::string end_operator_profile() {
  Profile& one = profile();
  const std::lock_guard lock(one.mutex);
  if (one.handle != at::INVALID_CALLBACK_HANDLE) at::removeCallback(one.handle);
  one.handle = at::INVALID_CALLBACK_HANDLE;
  std::vector<std::pair<std::string, Row>> rows(one.rows.begin(), one.rows.end());
  one.rows.clear();
  std::sort(rows.begin(), rows.end(), [](const auto& a, const auto& b) { return a.second.ms > b.second.ms; });
  nlohmann::json result = nlohmann::json::array();
  for (const auto& [label, row] : rows) {
    result.push_back({{"operator", label},
                      {"calls", row.calls},
                      {"ms", row.ms},
                      {"gflop", row.gflop ? nlohmann::json(*row.gflop) : nlohmann::json()}});
  }
  return result.dump();
}

}  // namespace diad
