#include "cuda/cuda_group_norm.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cos.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/group_norm.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/sin.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

#include "cuda/nvrtc.h"
#include "group_norm_source.h"  // written by CMake from kernels/group_norm.cu

namespace diad {

namespace {

constexpr std::array<const char*, 4> kKernels{"sums_f16", "normalize_f16", "sums_bf16", "normalize_bf16"};

constexpr int64_t kThreads = 256;       // of a block, where a group is not wider
constexpr int64_t kMostThreads = 1024;  // that a device takes
constexpr int64_t kImageBlocks = 512;   // enough for every processor of a large device at one image
constexpr int64_t kPixelsOfThread = 4;  // at least, where there are as many

bool is_half(const at::Tensor& x) { return x.scalar_type() == at::kHalf || x.scalar_type() == at::kBFloat16; }

// Kernels read two values at a time.
at::Tensor in_pairs(const at::Tensor& x) {
  return reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 4 == 0 ? x : x.clone();
}

// How an image is cut up: by its own size alone, so that its sums are the same in every batch.
struct Cut {
  int64_t block_groups, width, height, rows, chunks;

  Cut(int64_t pixels, int64_t groups, int64_t group_pairs) {
    block_groups = std::clamp<int64_t>(kThreads / group_pairs, 1, groups);
    while (groups % block_groups != 0) --block_groups;
    width = block_groups * group_pairs;
    height = std::max<int64_t>(1, kThreads / width);
    const int64_t most = std::max<int64_t>(1, kImageBlocks / (groups / block_groups));
    const int64_t wanted = (pixels + height * kPixelsOfThread - 1) / (height * kPixelsOfThread);
    const int64_t parts = std::clamp<int64_t>(wanted, 1, most);
    rows = (pixels + parts - 1) / parts;
    chunks = (pixels + rows - 1) / rows;
  }
};

}  // namespace

const char* group_norm_source() { return kGroupNormSource; }

KernelLauncher group_norm_launcher(c10::Device device) {
  static std::mutex mutex;
  static auto* const made =
      new std::map<std::string, KernelLauncher>;  // never destroyed: models may outlive static destructors
  const std::lock_guard lock(mutex);
  if (const auto found = made->find(device.str()); found != made->end()) return found->second;
  try {
    KernelLauncher launch = cuda_launcher(device, kGroupNormSource, kKernels);
    check_group_norm(launch, device);
    return made->try_emplace(device.str(), std::move(launch)).first->second;
  } catch (const std::exception& error) {
    TORCH_WARN("diad: GroupNorm stays LibTorch's on ", device.str(), ": ", error.what());
  }
  return {};  // the next model tries again
}

DeviceGroupNorm::DeviceGroupNorm(at::Tensor weight, at::Tensor bias, const GroupNormShape& shape,
                                 KernelLauncher launch)
    : weight_(std::move(weight)), bias_(std::move(bias)), shape_(shape), launch_(std::move(launch)) {
  const int64_t channels = weight_.numel();
  fits_ = launch_ && is_half(weight_) && bias_.scalar_type() == weight_.scalar_type() &&
          channels % (2 * shape.groups) == 0 && channels / (2 * shape.groups) <= kMostThreads;
  if (!fits_) return;
  weight_ = in_pairs(weight_.contiguous());
  bias_ = in_pairs(bias_.contiguous());
}

at::Tensor DeviceGroupNorm::fallback(const at::Tensor& x, const std::optional<at::Tensor>& shift) const {
  const at::Tensor y = at::group_norm(shift ? x + *shift : x, shape_.groups, weight_, bias_, shape_.eps);
  const at::Tensor result = shape_.silu ? at::silu(y) : y;
  return result.dim() == 4 ? result.contiguous(at::MemoryFormat::ChannelsLast) : result;
}

at::Tensor DeviceGroupNorm::run(const at::Tensor& x, const std::optional<at::Tensor>& shift) const {
  if (!fits_ || x.dim() != 4 || x.scalar_type() != weight_.scalar_type() || x.numel() == 0 ||
      x.size(1) != weight_.numel() || (shift && !is_per_channel(*shift, x))) {
    return fallback(x, shift);
  }
  const at::Tensor input = in_pairs(x.contiguous(at::MemoryFormat::ChannelsLast));
  const int64_t images = x.size(0), channels = x.size(1);
  int64_t pixels = x.size(2) * x.size(3);
  const int64_t groups = shape_.groups;
  const Cut cut(pixels, groups, channels / groups / 2);
  at::Tensor shifts;
  if (shift)
    shifts = in_pairs(shift->to(weight_.scalar_type()).reshape({shift->size(0), channels}).contiguous());
  at::Tensor output = at::empty_like(input);
  at::Tensor partial = at::empty({images, cut.chunks, groups, 2}, x.options().dtype(at::kFloat));

  const void *in = input.const_data_ptr(), *added = shift ? shifts.const_data_ptr() : nullptr,
             *weight = weight_.const_data_ptr(), *bias = bias_.const_data_ptr();
  void *out = output.mutable_data_ptr(), *sums = partial.mutable_data_ptr();
  int64_t shift_stride = shift && shifts.size(0) > 1 ? channels / 2 : 0;
  auto of_groups = static_cast<unsigned>(groups), group_pairs = static_cast<unsigned>(channels / groups / 2),
       rows = static_cast<unsigned>(cut.rows);
  auto eps = static_cast<float>(shape_.eps);
  int silu = shape_.silu ? 1 : 0;
  const bool brain = x.scalar_type() == at::kBFloat16;
  KernelLaunch launch;
  launch.grid = {static_cast<unsigned>(cut.chunks), static_cast<unsigned>(groups / cut.block_groups),
                 static_cast<unsigned>(images)};
  launch.block = {static_cast<unsigned>(cut.width), static_cast<unsigned>(cut.height)};
  launch.shared_bytes =
      static_cast<unsigned>(2 * sizeof(float) * static_cast<size_t>(cut.width * cut.height));
  launch.kernel = brain ? "sums_bf16" : "sums_f16";
  launch.arguments = {&in, &added, &shift_stride, &sums, &pixels, &of_groups, &group_pairs, &rows};
  launch_(launch);
  launch.kernel = brain ? "normalize_bf16" : "normalize_f16";
  launch.arguments = {&in,     &added,     &shift_stride, &sums, &weight, &bias, &out,
                      &pixels, &of_groups, &group_pairs,  &rows, &eps,    &silu};
  launch_(launch);
  return output;
}

void check_group_norm(const KernelLauncher& launch, c10::Device device) {
  struct Case {
    int64_t images, channels, height, width;
    bool shifted, silu;
  };
  int64_t at = 0;
  // A number for every place, the same on every device, with means of the size of the spread.
  const auto numbers = [&](at::IntArrayRef sizes, at::ScalarType type) {
    int64_t count = 1;
    for (const int64_t size : sizes) count *= size;
    at += 17;
    const at::Tensor places = at::arange(count, at::TensorOptions(at::kFloat).device(device));
    return (at::sin(places * 0.7391F + static_cast<float>(at)) + at::cos(places * 0.0113F))
        .reshape(sizes)
        .to(type);
  };
  for (const at::ScalarType type : {at::kHalf, at::kBFloat16}) {
    for (const Case& of : {Case{2, 320, 32, 32, true, true}, Case{1, 1280, 4, 4, true, false},
                           Case{3, 128, 61, 7, false, true}, Case{1, 64, 256, 256, false, false}}) {
      const at::Tensor x = numbers({of.images, of.channels, of.height, of.width}, type)
                               .contiguous(at::MemoryFormat::ChannelsLast);
      const std::optional<at::Tensor> shift =
          of.shifted ? std::optional(numbers({of.images, of.channels, 1, 1}, type)) : std::nullopt;
      const at::Tensor weight = numbers({of.channels}, type), bias = numbers({of.channels}, type);
      const GroupNormShape shape{32, 1e-5, of.silu};
      const at::Tensor found = DeviceGroupNorm(weight, bias, shape, launch).run(x, shift).to(at::kFloat);
      const auto in_float = [](const at::Tensor& values) { return values.to(at::kFloat); };
      const at::Tensor expected =
          DeviceGroupNorm(in_float(weight), in_float(bias), shape, {})
              .run(in_float(x), shift ? std::optional(in_float(*shift)) : std::nullopt);
      // Rounding to a bfloat16 alone is 2^-9 of a value at most.
      if (!((found - expected).norm().item<double>() <= 3e-3 * expected.norm().item<double>())) {
        throw std::runtime_error("our GroupNorm differs from LibTorch's on " + device.str());
      }
    }
  }
}

}  // namespace diad
