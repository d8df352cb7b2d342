#include "pipeline/pipeline.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/stack.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <chrono>
#include <sstream>

#include "evidence/anomaly_map.h"
#include "pipeline/ddim.h"
#include "pipeline/noise.h"
#include "support/cancellation.h"
#include "support/device.h"
#include "support/engine_error.h"
#include "support/malloc_trim.h"
#include "support/mmap_pool.h"

namespace diad {

namespace {

using Clock = std::chrono::steady_clock;

// Returns the milliseconds since the previous call, including the device's work.
class Lap {
 public:
  explicit Lap(c10::Device device) : device_(device) {}

  double operator()() {
    wait_for(device_);
    const auto now = Clock::now();
    const double passed = std::chrono::duration<double, std::milli>(now - last_).count();
    last_ = now;
    return passed;
  }

 private:
  c10::Device device_;
  Clock::time_point last_ = Clock::now();
};

Stage make_stage(const char* name, const at::Tensor& value) {
  const at::Tensor dense = value.to(at::kCPU, at::kFloat).contiguous();
  const auto* first = dense.const_data_ptr<float>();
  return {name, dense.sizes().vec(), std::vector<float>(first, first + dense.numel())};
}

// Maps and scores of a batch: the published ones, or the combined ones with a normality.
struct Maps {
  Features distances;  // [N, S, S] float32; undefined for combined maps without requested stages
  at::Tensor raw, smooth;
  std::vector<double> scores;
  std::vector<EvidenceScores> evidence;  // [N], or empty
  at::Tensor memory_distance;            // [N, G, G] float32; only with a normality
};

Maps published(const Features& distances, const Manifest& manifest) {
  AnomalyMaps maps = anomaly_maps(distances, manifest);
  return {maps.distances, maps.raw, maps.smooth, std::move(maps.scores), {}, {}};
}

Maps combined(Normality& normality, std::span<const ImageRequest> batch, const Features& distances,
              const at::Tensor& embedding, int64_t size) {
  std::vector<std::string> classes;
  for (const ImageRequest& request : batch) classes.push_back(request.class_name);
  Normality::Judgement judgement = normality.judge(distances, embedding, classes);
  const Evidence& evidence = judgement.evidence;
  Maps maps{{}, evidence.raw, evidence.smooth, evidence.scores, {}, judgement.memory_distance};
  for (size_t i = 0; i < batch.size(); ++i) {
    maps.evidence.push_back({evidence.reconstruction[i], evidence.memory[i], judgement.classes[i]});
  }
  if (std::ranges::any_of(batch, [](const ImageRequest& request) { return request.wanted.stages; })) {
    for (size_t i = 0; i < distances.size(); ++i) maps.distances[i] = enlarged(distances[i], size);
  }
  return maps;
}

void hand_over(std::span<const ImageRequest> batch, const Features& distances, const at::Tensor& embedding) {
  for (size_t i = 0; i < batch.size(); ++i) {
    const auto& [calibrator, index, roles] = batch[i].calibration;
    if (!calibrator) continue;
    const auto image = static_cast<int64_t>(i);
    calibrator->add(index, batch[i].class_name, roles,
                    {distances[0][image], distances[1][image], distances[2][image]}, embedding[image]);
  }
}

// Intermediate results of a batch, from input to reconstruction.
struct Intermediates {
  at::Tensor x, moments, z, x_start, reconstruction, embedding;
  std::vector<at::Tensor> step_x;

  [[nodiscard]] std::vector<Stage> stages(int64_t i, const Maps& maps) const {
    std::vector<at::Tensor> latents;
    for (const at::Tensor& latent : step_x) latents.push_back(latent[i]);
    std::vector<Stage> result{make_stage("x", x[i]),
                              make_stage("moments", moments[i]),
                              make_stage("z", z[i]),
                              make_stage("x_T", x_start[i]),
                              make_stage("step_x", at::stack(latents)),
                              make_stage("reconstruction", reconstruction[i]),
                              make_stage("distance_layer1", maps.distances[0][i]),
                              make_stage("distance_layer2", maps.distances[1][i]),
                              make_stage("distance_layer3", maps.distances[2][i]),
                              make_stage("map_raw", maps.raw[i]),
                              make_stage("map", maps.smooth[i])};
    result.push_back({"score", {}, {static_cast<float>(maps.scores[static_cast<size_t>(i)])}});
    if (embedding.defined()) result.push_back(make_stage("embedding", embedding[i]));
    if (maps.memory_distance.defined())
      result.push_back(make_stage("memory_distance", maps.memory_distance[i]));
    return result;
  }
};

Features slice_batch(const Features& features, int64_t first, int64_t count) {
  return {features[0].narrow(0, first, count), features[1].narrow(0, first, count),
          features[2].narrow(0, first, count)};
}

}  // namespace

// Returns a network's result if it has the expected size; throws EngineError otherwise.
at::Tensor expect_shape(at::Tensor result, at::IntArrayRef size, const char* file) {
  if (result.sizes() == size) return result;
  std::ostringstream words;
  words << file << ": Expected a result of " << size << " but received " << result.sizes();
  throw EngineError(code::kBundleInvalid, words.str());
}

Pipeline::Pipeline(Manifest manifest, std::unique_ptr<Networks> modules, c10::Device device,
                   c10::ScalarType precision, bool use_pool, std::unique_ptr<Normality> normality)
    : manifest_(std::move(manifest)),
      networks_(std::move(modules)),
      device_(device),
      precision_(precision),
      use_pool_(use_pool),
      normality_(std::move(normality)) {}

at::Tensor Pipeline::load_frames(std::span<const ImageRequest> batch) const {
  const auto size = static_cast<uint32_t>(manifest_.image_size);
  const auto of = [size](const ImageRequest& request) {
    check_cancelled();
    return resize_frame(*request.frame, size);
  };
  if (!device_.is_cpu()) {  // copies uint8, a quarter of the float32 size, from pinned memory
    const auto count = static_cast<int64_t>(batch.size());
    const at::Tensor bytes =
        at::empty({count, size, size, 3}, at::TensorOptions(at::kByte).pinned_memory(true));
    auto* to = bytes.mutable_data_ptr<uint8_t>();
    for (const ImageRequest& request : batch) to = std::ranges::copy(of(request), to).out;
    return normalized(bytes.to(device_, /*non_blocking=*/true), manifest_);
  }
  std::vector<at::Tensor> images;
  for (const ImageRequest& request : batch) images.push_back(normalized(of(request), manifest_));
  return at::cat(images);
}

// Computes the vectors [N, D, G, G] of the inputs from their feature maps. Undefined if neither a normality
// nor a calibration needs them.
at::Tensor Pipeline::embed_if_wanted(std::span<const ImageRequest> batch, const Features& maps) const {
  const bool collected = std::ranges::any_of(
      batch, [](const ImageRequest& request) { return request.calibration.calibrator != nullptr; });
  if (!manifest_.evidence || (!normality_ && !collected)) return {};
  const int64_t dimensions = manifest_.evidence->dimensions, grid = manifest_.evidence->grid;
  return expect_shape(networks_->embed(maps), {static_cast<int64_t>(batch.size()), dimensions, grid, grid},
                      "extractor.pt")
      .to(at::kFloat);
}

// Computes x_start = signal * z + spread * noise with the manifest's factors. With a spread of 0 the result
// is exactly signal * z.
at::Tensor Pipeline::start_of_sampling(const at::Tensor& z, const std::vector<at::Tensor>& noise) const {
  const double signal = manifest_.sqrt_alpha_bar_noise, spread = manifest_.sqrt_one_minus_alpha_bar_noise;
  at::Tensor start = signal * z;
  return spread == 0 ? start : start + spread * at::cat(noise).to(device_);
}

std::vector<ImageResult> Pipeline::run(std::span<const ImageRequest> batch, const StepCallback& on_step) {
  const c10::InferenceMode guard;
  const PooledScope pooled(use_pool_);
  const auto count = static_cast<int64_t>(batch.size());
  Lap lap(device_), whole(device_);
  const auto end_of_network = [&] {
    if (use_pool_) trim_heap();
    return lap();
  };
  Timings timings;
  Intermediates kept;

  kept.x = load_frames(batch);
  const at::Tensor x = kept.x.to(precision_);
  std::vector<at::Tensor> posterior, forward;
  for (const ImageRequest& request : batch) {
    Noise noise = draw_noise(request.seed, manifest_);
    posterior.push_back(std::move(noise.posterior));
    forward.push_back(std::move(noise.forward));
  }
  timings.resize = lap();
  check_cancelled();

  const int64_t side = manifest_.image_size, channels = manifest_.latent_channels,
                latent_side = manifest_.latent_size;
  kept.moments =
      expect_shape(networks_->encode(x), {count, 2 * channels, latent_side, latent_side}, "encoder.pt")
          .to(at::kFloat);
  kept.z = sample_posterior(kept.moments, at::cat(posterior).to(device_), manifest_);
  kept.x_start = start_of_sampling(kept.z, forward);
  timings.encode = end_of_network();
  check_cancelled();

  const at::Tensor hint = networks_->guide(x);
  at::Tensor latent = kept.x_start;
  const auto total = static_cast<int64_t>(manifest_.steps.size());
  for (int64_t i = 0; i < total; ++i) {
    const at::Tensor eps =
        expect_shape(networks_->denoise(latent.to(precision_), hint, i), latent.sizes(), "denoiser.pt")
            .to(at::kFloat);
    latent = ddim_update(latent, eps, manifest_.steps[static_cast<size_t>(i)]);
    kept.step_x.push_back(latent);
    wait_for(device_);  // so that steps are reported when they are done and cancelled steps do not start
    if (!on_step(i + 1, total)) return {};
  }
  timings.denoise = end_of_network();

  const auto decode = [&](const at::Tensor& z) {
    return expect_shape(networks_->decode((z / manifest_.latent_scale).to(precision_)),
                        {count, 3, side, side}, "decoder.pt")
        .to(at::kFloat);
  };
  kept.reconstruction = decode(latent);
  if (manifest_.residual_decoding) kept.reconstruction = kept.x + (kept.reconstruction - decode(kept.z));
  timings.decode = end_of_network();
  check_cancelled();
  const Features features = networks_->extract(at::cat({kept.x, kept.reconstruction}));
  kept.embedding = embed_if_wanted(batch, slice_batch(features, 0, count));
  timings.extract = end_of_network();
  const Features distances =
      cosine_distances(slice_batch(features, 0, count), slice_batch(features, count, count));
  const Maps maps = normality_ ? combined(*normality_, batch, distances, kept.embedding, side)
                               : published(distances, manifest_);
  if (kept.embedding.defined()) hand_over(batch, distances, kept.embedding);
  timings.map = lap();
  timings.compute = whole();

  std::vector<ImageResult> results(batch.size());
  for (size_t i = 0; i < batch.size(); ++i) {
    ImageResult& result = results[i];
    const auto index = static_cast<int64_t>(i);
    result.score = maps.scores[i];
    if (!maps.evidence.empty()) result.evidence = maps.evidence[i];
    result.size = manifest_.image_size;
    if (batch[i].wanted.map) result.map = make_stage("map", maps.smooth[index]).values;
    if (batch[i].wanted.reconstruction)
      result.reconstruction = denormalized(kept.reconstruction[index].cpu(), manifest_);
    if (batch[i].wanted.stages) result.stages = kept.stages(index, maps);
    result.timings = timings;
    result.batch_size = count;
  }
  return results;
}

}  // namespace diad
