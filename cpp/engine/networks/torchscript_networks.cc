// TorchScript implementation of the Networks interface.
#include <c10/core/InferenceMode.h>
#include <torch/csrc/jit/api/function_impl.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/passes/common_subexpression_elimination.h>
#include <torch/csrc/jit/passes/constant_propagation.h>
#include <torch/csrc/jit/passes/dead_code_elimination.h>
#include <torch/csrc/jit/passes/frozen_graph_optimizations.h>
#include <torch/csrc/jit/passes/lower_graph.h>
#include <torch/csrc/jit/passes/peephole.h>
#include <torch/csrc/jit/passes/remove_mutation.h>
#include <torch/csrc/jit/runtime/interpreter.h>

#include <algorithm>
#include <future>
#include <unordered_map>
#include <vector>

#include "bundle/torchscript_reader.h"
#include "cpu/cpu_graph_passes.h"
#include "cuda/cuda_graph_passes.h"
#include "networks/networks.h"
#include "support/cancellation.h"
#include "support/device.h"
#include "support/engine_error.h"
#include "support/error_translation.h"

namespace diad {

namespace {

using torch::jit::Graph;
using torch::jit::Module;
using torch::jit::Node;

void require_method(const Module& module, const char* file, const char* method, size_t arguments) {
  const auto found = module.find_method(method);
  if (!found) throw EngineError(code::kBundleInvalid, std::string(file) + " has no method " + method);
  const size_t received = found->num_inputs() - 1;  // without self
  if (received != arguments) {
    throw EngineError(code::kBundleInvalid, std::string(file) + ": Expected " + std::to_string(arguments) +
                                                " arguments for " + method + " but the method takes " +
                                                std::to_string(received));
  }
}

Module load_module(const Bundle& bundle, const char* file) {
  const c10::InferenceMode guard;
  try {
    Module module = read_torchscript(bundle.folder / file, file);
    module.eval();
    return module;
  } catch (const EngineError&) {
    throw;
  } catch (const std::exception& error) {
    const Failure failure = describe_failure(error);
    if (std::string_view(failure.code) == code::kOutOfMemory)
      throw EngineError(failure.code, failure.message);
    throw EngineError(code::kBundleCorrupt,
                      std::string(file) + " cannot be loaded as TorchScript: " + failure.message);
  }
}

// Inlines method calls. torch::jit::Inline() would optimize every callee first, together with its copies of
// what it calls.
void inline_methods(torch::jit::Block* block) {
  for (auto at = block->nodes().begin(); at != block->nodes().end();) {
    Node* const node = *at;
    torch::jit::GraphFunction* callee = nullptr;
    if (node->kind() == c10::prim::CallMethod) {
      if (const auto type = node->input(0)->type()->cast<c10::ClassType>()) {
        callee = torch::jit::tryToGraphFunction(type->getMethod(node->s(c10::attr::name)));
      }
    }
    if (callee == nullptr) {
      for (torch::jit::Block* const inner : node->blocks()) inline_methods(inner);
      ++at;
      continue;
    }
    check_cancelled();
    Node* const before = node->prev();
    torch::jit::inlineCallTo(node, callee, callee->graph().get());
    at = before->next()->iterator();  // the inlined nodes can contain further calls
  }
}

// Returns a method's graph with the module's weights as constants, like torch::jit::freeze but faster. With
// `channels_last` convolution weights get the layout that half-precision kernels read.
std::shared_ptr<Graph> with_constant_weights(const Module& module, const char* method, bool channels_last) {
  const std::shared_ptr<Graph> whole = module.get_method(method).graph()->copy();
  inline_methods(whole->block());
  auto [graph, weights] = torch::jit::LowerGraph(*whole, module._ivalue());
  torch::jit::EliminateDeadCode(graph);
  // While weights are inputs: as constants, each would be compared with all others.
  torch::jit::EliminateCommonSubexpression(graph);
  check_cancelled();
  const size_t arguments = graph->inputs().size() - weights.size();
  for (size_t i = weights.size(); i-- > 0;) {
    const torch::jit::WithInsertPoint at(*graph->nodes().begin());
    c10::IValue value = weights[i];
    if (value.isTensor()) {
      at::Tensor weight = value.toTensor().detach();
      value = channels_last && weight.dim() == 4 ? weight.contiguous(at::MemoryFormat::ChannelsLast) : weight;
    }
    graph->inputs()[arguments + i]->replaceAllUsesWith(graph->insertConstant(value));
    graph->eraseInput(arguments + i);
  }
  torch::jit::RemoveTensorMutation(graph);
  torch::jit::PeepholeOptimize(graph);
  torch::jit::ConstantPropagation(graph);
  check_cancelled();
  torch::jit::OptimizeFrozenGraph(graph);
  check_cancelled();
  return graph;
}

// Rejects long chains of values with a single use: the interpreter recurses through them, one stack frame per
// value.
void refuse_long_chains(const torch::jit::Block* block, const char* name) {
  constexpr int64_t kLongest = 5000;
  std::unordered_map<const torch::jit::Value*, int64_t> chains;
  for (const Node* node : block->nodes()) {
    int64_t longest = 0;
    for (const torch::jit::Value* input : node->inputs()) {
      const auto found = chains.find(input);
      if (found != chains.end()) longest = std::max(longest, found->second);
    }
    if (longest == kLongest) {
      throw EngineError(code::kBundleInvalid, std::string(name) + ": Expected at most " +
                                                  std::to_string(kLongest) +
                                                  " operations in a chain of single uses but there are more");
    }
    if (node->outputs().size() == 1 && node->output()->uses().size() == 1)
      chains.emplace(node->output(), longest + 1);
    for (const torch::jit::Block* inner : node->blocks()) refuse_long_chains(inner, name);
  }
}

// A runnable method. torch::jit::GraphExecutor would repeat the passes above at the first call.
class Program {
 public:
  Program(const std::shared_ptr<Graph>& graph, const char* name) : code_(graph, name) {}

  c10::IValue operator()(torch::jit::Stack arguments) {
    torch::jit::InterpreterState(code_).run(arguments);
    return std::move(arguments.front());
  }

 private:
  torch::jit::Code code_;
};

class TorchScriptModules final : public Networks {
 public:
  TorchScriptModules(const Bundle& bundle, c10::Device device, Precision precision)
      : channels_last_(precision.type != c10::kFloat) {
    KernelLauncher kernels;
    if (device.is_cuda() && channels_last_ && switched_on("DIAD_CUDA_KERNELS"))
      kernels = group_norm_launcher(device);
    // Reading compiles the TorchScript source, which takes as long as everything else: the largest file is
    // read in parallel with the others.
    std::future<Module> reading =
        std::async(std::launch::async, [&bundle, is_cancelled = current_cancellation()] {
          const CancellationScope scope(is_cancelled);
          return load_module(bundle, "denoiser.pt");
        });
    // Only the graphs hold the weights during packing, so each original is freed once its packed copy exists.
    const auto graph = [&](Module& module, const char* file, const char* method, size_t arguments,
                           Precision computed_in) {
      require_method(module, file, method, arguments);
      units_.push_back(module._ivalue()->compilation_unit());
      module.to(device, computed_in.type);
      std::shared_ptr<Graph> compiled =
          with_constant_weights(module, method, computed_in.type != c10::kFloat);
      if (!device.is_cpu()) forbid_tf32(compiled);
      view_rows(compiled);
      return compiled;
    };
    const auto program = [&](std::shared_ptr<Graph> compiled, const char* name, Precision computed_in,
                             int64_t runs = 1) {
      if (device.is_cpu() && cpu_multiplies(computed_in.type))
        optimize_for_cpu(compiled, {runs, computed_in.type, computed_in.quantized});
      if (kernels) use_device_norms(compiled, kernels);
      refuse_long_chains(compiled->block(), name);
      return std::make_unique<Program>(compiled, name);
    };
    const auto program_of = [&](const char* file, Precision computed_in) {
      check_cancelled();
      Module module = load_module(bundle, file);
      std::shared_ptr<Graph> forward = graph(module, file, "forward", 1, computed_in);
      module = Module();
      return program(std::move(forward), file, computed_in);
    };
    encode_ = program_of("encoder.pt", precision);
    // The decoder is not quantized: its rounding errors would show in the comparison with the input.
    decode_ = program_of("decoder.pt", Precision{precision.type});
    check_cancelled();
    Module extractor = load_module(bundle, "extractor.pt");
    std::shared_ptr<Graph> extract = graph(extractor, "extractor.pt", "forward", 1, Precision{}), embed;
    if (bundle.manifest.evidence) embed = graph(extractor, "extractor.pt", "embed", 1, Precision{});
    extractor = Module();
    extract_ = program(std::move(extract), "extractor.pt", Precision{});
    if (embed) embed_ = program(std::move(embed), "embed", Precision{});
    Module denoiser = reading.get();
    std::shared_ptr<Graph> guide = graph(denoiser, "denoiser.pt", "guide", 1, precision),
                           denoise = graph(denoiser, "denoiser.pt", "forward", 3, precision);
    denoiser = Module();
    guide_ = program(std::move(guide), "guide", precision);
    if (switched_on("DIAD_CUDA_STREAMS")) overlap_branches(denoise, kHint);
    denoise_ =
        program(std::move(denoise), "denoise", precision, static_cast<int64_t>(bundle.manifest.steps.size()));
  }

  at::Tensor encode(const at::Tensor& x) override { return (*encode_)({laid_out(x)}).toTensor(); }
  at::Tensor guide(const at::Tensor& x) override { return (*guide_)({laid_out(x)}).toTensor(); }
  at::Tensor denoise(const at::Tensor& z, const at::Tensor& hint, int64_t step) override {
    const OverlapScope scope;
    return (*denoise_)({laid_out(z), hint, step}).toTensor();
  }
  at::Tensor decode(const at::Tensor& z) override { return (*decode_)({laid_out(z)}).toTensor(); }

  Features extract(const at::Tensor& x) override {
    const c10::IValue output = (*extract_)({x});
    if (!output.isTuple() || output.toTupleRef().elements().size() != 3) {
      throw EngineError(code::kBundleInvalid, "extractor.pt: Expected three feature maps from forward");
    }
    const auto& maps = output.toTupleRef().elements();
    return {maps[0].toTensor(), maps[1].toTensor(), maps[2].toTensor()};
  }

  at::Tensor embed(const Features& maps) override {
    if (!embed_) return Networks::embed(maps);
    const c10::IValue output = (*embed_)({c10::ivalue::Tuple::create(maps[0], maps[1], maps[2])});
    if (!output.isTensor())
      throw EngineError(code::kBundleInvalid, "extractor.pt: Expected a tensor from embed");
    return output.toTensor();
  }

 private:
  [[nodiscard]] at::Tensor laid_out(const at::Tensor& x) const {
    return channels_last_ ? x.contiguous(at::MemoryFormat::ChannelsLast) : x;
  }

  static constexpr size_t kHint = 1;  // index of denoise's argument

  bool channels_last_;
  // Nodes of the graphs point to the functions they were inlined from without owning them; errors thrown by
  // the interpreter name these functions.
  std::vector<std::shared_ptr<torch::jit::CompilationUnit>> units_;
  std::unique_ptr<Program> encode_, guide_, denoise_, decode_, extract_;
  std::unique_ptr<Program> embed_;  // null without evidence
};

}  // namespace

std::unique_ptr<Networks> load_networks(const Bundle& bundle, c10::Device device, Precision precision) {
  const c10::InferenceMode guard;
  return std::make_unique<TorchScriptModules>(bundle, device, precision);
}

}  // namespace diad
