#include "runtime/model.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/version.h>

#include <fstream>
#include <future>
#include <map>
#include <nlohmann/json.hpp>

#include "bundle/sha256.h"
#include "cpu/kernel_dispatch.h"
#include "diad_engine.h"
#include "networks/cuda_graph_networks.h"
#include "networks/precision.h"
#include "support/cancellation.h"
#include "support/cgroup_cpu_limit.h"
#include "support/device.h"
#include "support/engine_error.h"
#include "support/malloc_trim.h"
#include "support/thread_pool.h"

namespace diad {

namespace {

using Clock = std::chrono::steady_clock;

// Bundle size in bytes from which releasing memory after every image adds no noticeable time.
constexpr uint64_t kLargeModel = uint64_t{1} << 30;

// Number of threads of a model loaded without one: LibTorch's default, which respects the CPU affinity,
// limited to the cgroup CPU quota. Cached before any model changes the process-wide default, which new
// threads inherit.
int default_threads() {
  static const int threads = [] {
    const int processors = at::get_num_threads(), quota = cpu_quota();
    return quota == 0 ? processors : std::min(processors, quota);
  }();
  return threads;
}

// Scores one image so that the first real image finds code and memory ready.
void warm_up(Batcher& queue, int64_t size) {
  const auto finished = std::make_shared<std::promise<void>>();
  Submission submission;
  submission.frame = {std::vector<uint8_t>(static_cast<size_t>(size * size * 3), 128),
                      static_cast<uint32_t>(size), static_cast<uint32_t>(size), 3};
  submission.done = [finished](const Outcome& outcome) {
    if (const auto* failure = std::get_if<Failure>(&outcome)) {
      finished->set_exception(std::make_exception_ptr(EngineError(failure->code, failure->message)));
    } else {
      finished->set_value();
    }
  };
  const uint64_t id = queue.submit(std::move(submission));
  auto future = finished->get_future();
  while (future.wait_for(std::chrono::milliseconds(20)) != std::future_status::ready) {
    try {
      check_cancelled();
    } catch (...) {
      queue.cancel(id);
      throw;
    }
  }
  future.get();
}

// Captures CUDA graphs on an accelerator with DIAD_CUDA_GRAPHS=1.
std::unique_ptr<Networks> load_modules(const Bundle& bundle, c10::Device device, Precision precision) {
  std::unique_ptr<Networks> modules = load_networks(bundle, device, precision);
  if (!switched_on("DIAD_CUDA_GRAPHS")) return modules;
  Recorder recorder = graph_recorder(device);
  if (!recorder) return modules;
  return std::make_unique<CapturedModules>(std::move(modules), std::move(recorder));
}

std::vector<uint8_t> read_normality(const std::filesystem::path& file) {
  std::error_code error;
  const auto size =
      std::filesystem::is_regular_file(file, error) ? std::filesystem::file_size(file, error) : 0;
  std::vector<uint8_t> bytes(size);
  std::ifstream stream(file, std::ios::binary);
  stream.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(size));
  if (size == 0 || !stream) {
    throw EngineError(code::kBundleCorrupt,
                      "Cannot read the normality file " + file.string() + "; calibrate the bundle again");
  }
  return bytes;
}

std::string sha256_of(std::span<const uint8_t> bytes) {
  Sha256 hash;
  hash.update(bytes);
  return hash.hex();
}

}  // namespace

Model::Model(const Bundle& bundle, const LoadOptions& options, const NormalClasses* normality,
             const std::string& normality_sha256)
    : device_(parse_device(options.device)),
      manifest_(bundle.manifest),
      threads_(options.threads > 0 ? options.threads : default_threads()) {
  const auto started = Clock::now();
  const c10::Device device = device_;
  const Precision precision = parse_precision(options.precision, device);
  if (device.is_cuda()) {  // no TF32: float32 keeps full precision
    at::globalContext().setAllowTF32CuBLAS(false);
    at::globalContext().setAllowTF32CuDNN(false);
    at::globalContext().setSDPUseCuDNN(false);  // cuDNN builds a new plan for every shape
  }
  const int threads = threads_;
  const MakeBatchRunner make_runner = [&, is_cancelled = current_cancellation()]() -> BatchRunner {
    const CancellationScope scope(is_cancelled);  // the cancellation of the loading thread
    at::set_num_threads(threads);
    if (!device.is_cpu())
      c10::impl::VirtualGuardImpl(device.type()).setDevice(device);  // for the lifetime of the thread
    const bool use_pool = device.is_cpu() && bundle.size_bytes >= kLargeModel;
    const auto pool = std::make_shared<ThreadPool>(threads - 1);  // on a GPU: only resizes images
    const ThreadPoolScope while_loading(*pool);
    std::unique_ptr<Networks> modules = load_modules(bundle, device, precision);
    auto judged_by =
        normality == nullptr ? nullptr : std::make_unique<Normality>(*normality, bundle.manifest, device);
    auto pipeline = std::make_shared<Pipeline>(bundle.manifest, std::move(modules), device, precision.type,
                                               use_pool, std::move(judged_by));
    // With the custom CPU kernels LibTorch has little left to parallelize, and OpenMP's threads would compete
    // with the thread pool.
    if (device.is_cpu() && precision.type == at::kFloat && cpu_kernels() != nullptr) at::set_num_threads(1);
    return [pool, pipeline = std::move(pipeline)](std::span<const ImageRequest> batch,
                                                  const StepCallback& on_step) {
      const ThreadPoolScope sharing(*pool);
      return pipeline->run(batch, on_step);
    };
  };
  queue_ = std::make_unique<Batcher>(options.queue, make_runner);
  if (options.warmup) warm_up(*queue_, bundle.manifest.image_size);
  trim_heap();
  const double load_ms = std::chrono::duration<double, std::milli>(Clock::now() - started).count();
  info_ = nlohmann::json{{"manifest", nlohmann::json::parse(bundle.manifest_json)},
                         {"manifestSha256", bundle.manifest_sha256},
                         {"device", device.str()},
                         {"precision", options.precision},
                         {"threads", threads},
                         {"libtorch", TORCH_VERSION},
                         {"loadMs", load_ms},
                         {"sizeBytes", bundle.size_bytes},
                         {"normalitySha256",
                          normality == nullptr ? nlohmann::json() : nlohmann::json(normality_sha256)}}
              .dump();
}

Model::~Model() {
  queue_.reset();
  empty_device_cache(device_);
}

std::shared_ptr<Model> open_model(const std::filesystem::path& folder, const LoadOptions& options) {
  struct Registry {
    std::timed_mutex mutex;  // held while a model loads: concurrent loads would slow each other down
    std::map<std::string, std::weak_ptr<Model>> models;
  };
  static auto* registry = new Registry;  // never destroyed: threads can outlive static destructors
  const Bundle bundle = open_bundle(folder, options.verify);
  std::vector<uint8_t> normality;
  if (!options.normality.empty()) {
    if (!bundle.manifest.evidence) {
      throw EngineError(code::kInvalidArgument,
                        "The bundle " + bundle.manifest.name +
                            " has no evidence in its manifest: it cannot use the normality file " +
                            options.normality.string());
    }
    normality = read_normality(options.normality);
  }
  const std::string normality_sha256 = normality.empty() ? "" : sha256_of(normality);
  const std::string key = nlohmann::json{bundle.manifest_sha256,
                                         std::filesystem::canonical(folder).string(),
                                         parse_device(options.device).str(),
                                         options.precision,
                                         options.threads,
                                         options.queue.max_batch,
                                         options.queue.max_delay.count(),
                                         options.queue.queue_limit,
                                         options.queue.preferred,
                                         normality_sha256}
                              .dump();
  std::unique_lock lock(registry->mutex, std::defer_lock);
  while (!lock.try_lock_for(std::chrono::milliseconds(20))) check_cancelled();
  std::weak_ptr<Model>& known = registry->models[key];
  if (std::shared_ptr<Model> model = known.lock()) return model;
  std::optional<NormalClasses> classes;
  if (!normality.empty())
    classes = parse_normality(normality, options.normality.filename().string(), bundle.manifest);
  auto model = std::make_shared<Model>(bundle, options, classes ? &*classes : nullptr, normality_sha256);
  known = model;
  return model;
}

std::string engine_version() {
  return nlohmann::json{{"engine", DIAD_VERSION},
                        {"abi", DIAD_ENGINE_ABI},
                        {"libtorchBuilt", TORCH_VERSION},
                        {"cudaDevices", cuda_devices()},
                        {"cpuCapability", at::get_cpu_capability()},
                        {"threads", default_threads()}}
      .dump();
}

}  // namespace diad
