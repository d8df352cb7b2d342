#include "cuda/nvrtc.h"

#include <stdexcept>

#if defined(__linux__)

#include <ATen/Context.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <dlfcn.h>

#include <array>
#include <filesystem>
#include <map>
#include <memory>
#include <system_error>
#include <utility>

namespace diad {

namespace {

// The required functions of NVRTC and of the driver, as documented. They return 0 on success.
struct OpaqueProgram;
struct OpaqueModule;
struct OpaqueFunction;
using Program = OpaqueProgram*;                                            // nvrtcProgram
using Module = OpaqueModule*;                                              // CUmodule
using Function = OpaqueFunction*;                                          // CUfunction
constexpr int kComputeCapabilityMajor = 75, kComputeCapabilityMinor = 76;  // CUdevice_attribute

// A library that is never closed: its code can run until the process ends.
class Library {
 public:
  // Opens the first of `names` that can be opened.
  Library(const char* what, const std::vector<std::string>& names) : what_(what) {
    std::string errors;
    for (const std::string& name : names) {
      handle_ = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
      if (handle_ != nullptr) return;
      errors += std::string("; ") + dlerror();
    }
    throw std::runtime_error(std::string(what) + " cannot be opened" + errors);
  }

  // Looks up a function in the library and its dependencies.
  template <typename Signature>
  void find(const char* name, Signature*& function) const {
    function = reinterpret_cast<Signature*>(dlsym(handle_, name));
    if (function == nullptr) throw std::runtime_error(std::string(what_) + " has no " + name);
  }

 private:
  const char* what_;
  void* handle_ = nullptr;
};

// NVRTC is found through the LibTorch library that depends on it, or by the system's search path.
std::vector<std::string> nvrtc_names() {
  std::vector<std::string> names;
  Dl_info libtorch;
  if (dladdr(reinterpret_cast<const void*>(&at::globalContext), &libtorch) != 0) {
    names.push_back(
        (std::filesystem::path(libtorch.dli_fname).parent_path() / "libcaffe2_nvrtc.so").string());
  }
  names.insert(names.end(), {"libnvrtc.so.13", "libnvrtc.so.12"});
  return names;
}

struct Nvrtc {
  explicit Nvrtc(const std::vector<std::string>& names) : library("NVRTC", names) {
    library.find("nvrtcCreateProgram", create);
    library.find("nvrtcCompileProgram", compile);
    library.find("nvrtcGetProgramLogSize", log_size);
    library.find("nvrtcGetProgramLog", log);
    library.find("nvrtcGetCUBINSize", code_size);
    library.find("nvrtcGetCUBIN", code);
    library.find("nvrtcDestroyProgram", destroy);
    library.find("nvrtcGetErrorString", error_string);
    open_builtins();
  }

  // NVRTC opens this library by its bare name, which finds one that is already open. The search path might
  // not contain its folder.
  void open_builtins() const {
    Dl_info nvrtc;
    if (dladdr(reinterpret_cast<const void*>(create), &nvrtc) == 0) return;
    std::error_code unreadable;
    for (const auto& entry : std::filesystem::directory_iterator(
             std::filesystem::path(nvrtc.dli_fname).parent_path(), unreadable)) {
      if (entry.path().filename().string().starts_with("libnvrtc-builtins.so"))
        dlopen(entry.path().c_str(), RTLD_NOW | RTLD_LOCAL);
    }
  }

  void check(int result, const char* doing) const {
    if (result != 0) throw std::runtime_error(std::string("NVRTC, ") + doing + ": " + error_string(result));
  }

  Library library;
  int (*create)(Program*, const char* source, const char* name, int headers, const char* const* texts,
                const char* const* names) = nullptr;
  int (*compile)(Program, int options, const char* const* values) = nullptr;
  int (*log_size)(Program, size_t*) = nullptr;
  int (*log)(Program, char*) = nullptr;
  int (*code_size)(Program, size_t*) = nullptr;
  int (*code)(Program, char*) = nullptr;
  int (*destroy)(Program*) = nullptr;
  const char* (*error_string)(int) = nullptr;
};

struct Driver {
  Driver() : library("the CUDA driver", {"libcuda.so.1"}) {
    library.find("cuCtxGetDevice", current_device);
    library.find("cuDeviceGetAttribute", attribute);
    library.find("cuModuleLoadData", load);
    library.find("cuModuleGetFunction", function);
    library.find("cuLaunchKernel", launch);
    library.find("cuGetErrorString", error_string);
  }

  void check(int result, const char* doing) const {
    if (result == 0) return;
    const char* text = nullptr;
    if (error_string(result, &text) != 0 || text == nullptr) text = "unknown error";
    throw std::runtime_error(std::string("CUDA driver, ") + doing + ": " + text);
  }

  Library library;
  int (*current_device)(int*) = nullptr;
  int (*attribute)(int*, int attribute, int device) = nullptr;
  int (*load)(Module*, const void* image) = nullptr;
  int (*function)(Function*, Module, const char* name) = nullptr;
  int (*launch)(Function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned shared_bytes,
                void* stream, void** arguments, void** extra) = nullptr;
  int (*error_string)(int, const char**) = nullptr;
};

// LibTorch 2.11 has no device-independent access to native stream handles.
template <typename Implementation>
void* native_stream(const Implementation& implementation, c10::Device device) {
  if constexpr (requires { implementation.getStreamNativeHandle(implementation.getStream(device)); }) {
    return implementation.getStreamNativeHandle(implementation.getStream(device));
  } else {
    throw std::runtime_error("this LibTorch does not provide native stream handles");
  }
}

}  // namespace

std::vector<char> compile_cuda(const std::string& source, const std::string& architecture,
                               const std::string& nvrtc) {
  const Nvrtc compiler(nvrtc.empty() ? nvrtc_names() : std::vector<std::string>{nvrtc});
  Program made = nullptr;
  compiler.check(compiler.create(&made, source.c_str(), "diad.cu", 0, nullptr, nullptr),
                 "creating a program");
  const auto end = [&compiler](OpaqueProgram* program) { compiler.destroy(&program); };
  const std::unique_ptr<OpaqueProgram, decltype(end)> program(made, end);
  const std::string target = "--gpu-architecture=" + architecture;
  const std::array<const char*, 2> options{target.c_str(), "--std=c++17"};
  const int result = compiler.compile(program.get(), static_cast<int>(options.size()), options.data());
  if (result != 0) {
    size_t size = 0;
    std::string log;
    if (compiler.log_size(program.get(), &size) == 0) {
      log.resize(size);
      static_cast<void>(compiler.log(program.get(), log.data()));
    }
    throw std::runtime_error("NVRTC for " + architecture + ": " + compiler.error_string(result) + "\n" +
                             log.c_str());
  }
  size_t size = 0;
  compiler.check(compiler.code_size(program.get(), &size), "getting the code");
  std::vector<char> code(size);
  compiler.check(compiler.code(program.get(), code.data()), "getting the code");
  return code;
}

KernelLauncher cuda_launcher(c10::Device device, const std::string& source,
                             std::span<const char* const> kernels) {
  const auto driver = std::make_shared<const Driver>();
  const c10::impl::VirtualGuardImpl implementation(device.type());
  const c10::DeviceGuard guard(device);
  // Makes the device's context current on this thread. Allocating memory might not, because LibTorch can
  // serve it from its cache.
  static_cast<void>(at::zeros({1}, at::TensorOptions(device)));
  int number = 0, major = 0, minor = 0;
  driver->check(driver->current_device(&number), "getting the device");
  driver->check(driver->attribute(&major, kComputeCapabilityMajor, number), "getting its architecture");
  driver->check(driver->attribute(&minor, kComputeCapabilityMinor, number), "getting its architecture");
  const std::vector<char> code = compile_cuda(source, "sm_" + std::to_string(major) + std::to_string(minor));
  Module loaded = nullptr;
  driver->check(driver->load(&loaded, code.data()), "loading the kernels");
  std::map<std::string, Function, std::less<>> functions;
  for (const char* name : kernels) driver->check(driver->function(&functions[name], loaded, name), name);
  static_cast<void>(native_stream(implementation, device));
  return [driver, device, implementation, functions = std::move(functions)](const KernelLaunch& launch) {
    const auto [x, y, z] = launch.grid;
    const auto [width, height] = launch.block;
    std::vector<void*> arguments = launch.arguments;
    const c10::DeviceGuard on(device);
    driver->check(driver->launch(functions.at(launch.kernel), x, y, z, width, height, 1, launch.shared_bytes,
                                 native_stream(implementation, device), arguments.data(), nullptr),
                  launch.kernel);
  };
}

}  // namespace diad

#else

namespace diad {

std::vector<char> compile_cuda(const std::string&, const std::string&, const std::string&) {
  throw std::runtime_error("CUDA kernels are supported on Linux only");
}

KernelLauncher cuda_launcher(c10::Device, const std::string& source, std::span<const char* const>) {
  static_cast<void>(compile_cuda(source, {}));
  return {};
}

}  // namespace diad

#endif
