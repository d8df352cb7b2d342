// TorchScript behind the Modules interface.
#include <c10/core/InferenceMode.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/passes/tensorexpr_fuser.h>
#include <torch/csrc/jit/runtime/graph_executor.h>

#include <mutex>

#include "cpu_passes.h"
#include "error.h"
#include "failure.h"
#include "modules.h"
#include "torchscript_archive.h"

namespace diad {

namespace {

using torch::jit::Module;

// Profiling would specialise the first calls on their shapes and compile again for others; the fuser would compile kernels at run time.
void configure_executor() {
  static std::once_flag once;
  std::call_once(once, [] {
    torch::jit::getProfilingMode() = false;
    torch::jit::setTensorExprFuserEnabled(false);
  });
}

void require_method(const Module& module, const char* file, const char* method, size_t arguments) {
  const auto found = module.find_method(method);
  if (!found) throw EngineError(code::kBundleInvalid, std::string(file) + " has no method " + method);
  const size_t received = found->num_inputs() - 1;  // without self
  if (received != arguments) {
    throw EngineError(code::kBundleInvalid, std::string(file) + ": Expected " + std::to_string(arguments) + " arguments for " + method +
                                                " but the method takes " + std::to_string(received));
  }
}

Module load_module(const Bundle& bundle, const char* file, c10::Device device, c10::ScalarType precision) {
  try {
    Module module = read_torchscript(bundle.folder / file, file);
    module.eval();
    module.to(device, precision);
    return module;
  } catch (const EngineError&) {
    throw;
  } catch (const std::exception& error) {
    const Failure failure = describe_failure(error);
    if (std::string_view(failure.code) == code::kOutOfMemory) throw EngineError(failure.code, failure.message);
    throw EngineError(code::kBundleCorrupt, std::string(file) + " cannot be loaded as TorchScript: " + failure.message);
  }
}

class TorchScriptModules final : public Modules {
 public:
  TorchScriptModules(const Bundle& bundle, c10::Device device, c10::ScalarType precision)
      : encoder_(prepared(bundle, "encoder.pt", device, precision)),
        denoiser_(prepared(bundle, "denoiser.pt", device, precision)),
        decoder_(prepared(bundle, "decoder.pt", device, precision)),
        extractor_(prepared(bundle, "extractor.pt", device, precision)) {}

  at::Tensor encode(const at::Tensor& x) override { return encoder_.forward({x}).toTensor(); }
  at::Tensor guide(const at::Tensor& x) override { return denoiser_.get_method("guide")({x}).toTensor(); }
  at::Tensor denoise(const at::Tensor& z, const at::Tensor& hint, int64_t step) override {
    return denoiser_.forward({z, hint, step}).toTensor();
  }
  at::Tensor decode(const at::Tensor& z) override { return decoder_.forward({z}).toTensor(); }

  Features extract(const at::Tensor& x) override {
    const c10::IValue output = extractor_.forward({x});
    if (!output.isTuple() || output.toTupleRef().elements().size() != 3) {
      throw EngineError(code::kBundleInvalid, "extractor.pt: Expected three feature maps from forward");
    }
    const auto& maps = output.toTupleRef().elements();
    return {maps[0].toTensor(), maps[1].toTensor(), maps[2].toTensor()};
  }

 private:
  static Module prepared(const Bundle& bundle, const char* file, c10::Device device, c10::ScalarType precision) {
    const bool is_denoiser = std::string_view(file) == "denoiser.pt";
    Module module = load_module(bundle, file, device, precision);
    require_method(module, file, "forward", is_denoiser ? 3 : 1);
    std::optional<std::vector<std::string>> kept;
    if (is_denoiser) {
      require_method(module, file, "guide", 1);
      kept = std::vector<std::string>{"guide"};
    }
    Module frozen = torch::jit::freeze(module, kept);
    if (device.is_cpu() && precision == c10::kFloat) {
      for (const auto& method : frozen.get_methods()) optimise_for_cpu(method.graph());
    }
    return frozen;
  }

  Module encoder_, denoiser_, decoder_, extractor_;
};

}  // namespace

std::unique_ptr<Modules> load_torchscript(const Bundle& bundle, c10::Device device, c10::ScalarType precision) {
  configure_executor();
  const c10::InferenceMode guard;
  return std::make_unique<TorchScriptModules>(bundle, device, precision);
}

}  // namespace diad
