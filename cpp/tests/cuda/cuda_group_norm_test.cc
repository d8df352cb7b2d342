// Tests the kernels of group_norm.cu, compiled for the CPU: every thread of a block is a CPU thread, so that
// sanitizers detect memory errors and races.
#include "cuda/cuda_group_norm.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/group_norm.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <barrier>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string_view>
#include <thread>
#include <vector>

#include "random_tensor.h"
#include "support.h"

namespace emulated {

struct Place {
  unsigned x = 0, y = 0, z = 0;
};

thread_local Place threadIdx, blockIdx;  // NOLINT: CUDA's names
thread_local Place blockDim, gridDim;    // NOLINT
thread_local std::barrier<>* waiting = nullptr;

void __syncthreads() { waiting->arrive_and_wait(); }  // NOLINT

struct Float16 {
  static float widen(unsigned short bits) {
    return static_cast<float>(c10::Half(bits, c10::Half::from_bits()));
  }
  static unsigned short narrow(float value) { return c10::Half(value).x; }
};

struct BFloat16 {
  static float widen(unsigned short bits) {
    return static_cast<float>(c10::BFloat16(bits, c10::BFloat16::from_bits()));
  }
  static unsigned short narrow(float value) { return c10::BFloat16(value).x; }
};

#define __device__
namespace kernels {
#include "cuda/kernels/group_norm.cu"
}
#undef __device__

template <typename T>
T argument(const diad::KernelLaunch& launch, size_t i) {
  T value;
  std::memcpy(&value, launch.arguments.at(i), sizeof(T));
  return value;
}

template <typename Type>
void run_thread(const diad::KernelLaunch& launch, bool sums, float* shared) {
  using In = const unsigned*;
  const auto& of = launch;
  if (sums) {
    kernels::sum_chunk<Type>(argument<In>(of, 0), argument<In>(of, 1), argument<long long>(of, 2),
                             argument<float*>(of, 3), argument<long long>(of, 4), argument<unsigned>(of, 5),
                             argument<unsigned>(of, 6), argument<unsigned>(of, 7), shared);
  } else {
    kernels::normalize_chunk<Type>(
        argument<In>(of, 0), argument<In>(of, 1), argument<long long>(of, 2), argument<const float*>(of, 3),
        argument<In>(of, 4), argument<In>(of, 5), argument<unsigned*>(of, 6), argument<long long>(of, 7),
        argument<unsigned>(of, 8), argument<unsigned>(of, 9), argument<unsigned>(of, 10),
        argument<float>(of, 11), argument<int>(of, 12), shared);
  }
}

// Runs blocks one after the other, and the threads of a block concurrently.
void launch(const diad::KernelLaunch& launch) {
  const std::string_view kernel = launch.kernel;
  const bool sums = kernel.starts_with("sums"), brain = kernel.ends_with("bf16");
  REQUIRE(launch.arguments.size() == (sums ? 8 : 13));
  const auto [width, height] = launch.block;
  std::barrier<> barrier(static_cast<std::ptrdiff_t>(width) * height),
      ends(static_cast<std::ptrdiff_t>(width) * height);
  std::vector<float> shared;
  const auto thread = [&](unsigned x, unsigned y) {
    threadIdx = {x, y, 0};
    blockDim = {width, height, 1};
    gridDim = {launch.grid[0], launch.grid[1], launch.grid[2]};
    waiting = &barrier;
    for (unsigned block = 0; block < gridDim.x * gridDim.y * gridDim.z; ++block) {
      blockIdx = {block % gridDim.x, block / gridDim.x % gridDim.y, block / gridDim.x / gridDim.y};
      if (x == 0 && y == 0)
        shared = std::vector<float>(launch.shared_bytes / sizeof(float), std::nanf(""));  // no stale values
      ends.arrive_and_wait();
      brain ? run_thread<BFloat16>(launch, sums, shared.data())
            : run_thread<Float16>(launch, sums, shared.data());
      ends.arrive_and_wait();
    }
  };
  std::vector<std::thread> threads;
  for (unsigned y = 0; y < height; ++y) {
    for (unsigned x = 0; x < width; ++x) threads.emplace_back(thread, x, y);
  }
  for (std::thread& one : threads) one.join();
}

}  // namespace emulated

namespace {

using namespace diad;

at::Tensor expected_norm(const at::Tensor& x, const std::optional<at::Tensor>& shift,
                         const at::Tensor& weight, const at::Tensor& bias, const GroupNormShape& shape) {
  const at::Tensor shifted = shift ? x.to(at::kDouble) + shift->to(at::kDouble) : x.to(at::kDouble);
  const at::Tensor y =
      at::group_norm(shifted, shape.groups, weight.to(at::kDouble), bias.to(at::kDouble), shape.eps);
  return shape.silu ? at::silu(y) : y;
}

// Returns the largest difference in units of the type's rounding.
double in_roundings(const at::Tensor& found, const at::Tensor& expected) {
  const double unit = found.scalar_type() == at::kHalf ? std::ldexp(1.0, -11) : std::ldexp(1.0, -8);
  return ((found.to(at::kDouble) - expected).abs() / (expected.abs() + 1e-2)).max().item<double>() / unit;
}

}  // namespace

TEST_CASE("the device's GroupNorm equals the rounded exact result for all shapes") {
  const c10::InferenceMode guard;
  struct Size {
    int64_t images, channels, groups, height, width;
  };
  for (const at::ScalarType type : {at::kHalf, at::kBFloat16}) {
    for (const Size& of : {Size{1, 64, 32, 1, 1}, Size{2, 320, 32, 5, 3}, Size{1, 1280, 8, 3, 3},
                           Size{3, 12, 2, 9, 31}, Size{1, 1200, 1, 2, 2}, Size{2, 8, 4, 37, 37}}) {
      for (const int variant : {0, 1, 2}) {  // no shift; one for all images; one per image
        CAPTURE(variant);
        CAPTURE(of.channels);
        const at::Tensor x = (random_tensor({of.images, of.channels, of.height, of.width}, 1) +
                              20 * random_tensor({1, of.channels, 1, 1}, 2))
                                 .to(type);
        std::optional<at::Tensor> shift;
        if (variant > 0) shift = random_tensor({variant == 1 ? 1 : of.images, of.channels, 1, 1}, 3).to(type);
        const at::Tensor weight = random_tensor({of.channels}, 4).to(type),
                         bias = random_tensor({of.channels}, 5).to(type);
        const GroupNormShape shape{of.groups, 1e-5, variant != 1};
        const at::Tensor y = DeviceGroupNorm(weight, bias, shape, emulated::launch).run(x, shift);
        CHECK((y.scalar_type() == type));
        CHECK(y.is_contiguous(at::MemoryFormat::ChannelsLast));
        CHECK(in_roundings(y, expected_norm(x, shift, weight, bias, shape)) < 1.3);
      }
    }
  }
}

TEST_CASE("the result of an image on the device does not depend on its batch") {
  const c10::InferenceMode guard;
  const at::Tensor x = random_tensor({3, 40, 11, 13}, 1).to(at::kBFloat16);
  const DeviceGroupNorm norm(at::ones({40}, at::kBFloat16), at::zeros({40}, at::kBFloat16), {4, 1e-5, true},
                             emulated::launch);
  const at::Tensor together = norm.run(x, std::nullopt);
  for (int64_t i = 0; i < 3; ++i)
    CHECK(norm.run(x.narrow(0, i, 1), std::nullopt).equal(together.narrow(0, i, 1)));
}

TEST_CASE("the device's SiLU is correct where exp overflows and keeps NaN") {
  const c10::InferenceMode guard;
  const at::Tensor x = at::tensor({-1.0F, 1.0F, -1.0F, 1.0F}).reshape({1, 2, 1, 2}).to(at::kHalf);
  const at::Tensor weight = at::full({2}, 3e4F).to(at::kHalf), bias = at::zeros({2}, at::kHalf);
  const at::Tensor y =
      DeviceGroupNorm(weight, bias, {1, 1e-5, true}, emulated::launch).run(x, std::nullopt).to(at::kFloat);
  CHECK(y.min().item<float>() == 0);
  CHECK(y.max().item<float>() == doctest::Approx(3e4).epsilon(1e-3));
  const at::Tensor broken = at::full({1, 2, 2, 2}, std::nanf("")).to(at::kHalf);
  CHECK(DeviceGroupNorm(weight, bias, {1, 1e-5, true}, emulated::launch)
            .run(broken, std::nullopt)
            .isnan()
            .all()
            .item<bool>());
}

TEST_CASE("unsupported inputs of the device's GroupNorm fall back to LibTorch") {
  const c10::InferenceMode guard;
  int launched = 0;
  const KernelLauncher counting = [&](const KernelLaunch&) { ++launched; };
  const auto compare = [&](const at::Tensor& x, int64_t groups) {
    const int64_t channels = x.size(1);
    const at::Tensor weight = random_tensor({channels}, 4).to(x.scalar_type()),
                     bias = random_tensor({channels}, 5).to(x.scalar_type());
    const GroupNormShape shape{groups, 1e-5, true};
    const at::Tensor y = DeviceGroupNorm(weight, bias, shape, counting).run(x, std::nullopt);
    CHECK(((y.to(at::kDouble) - expected_norm(x, std::nullopt, weight, bias, shape))
               .abs()
               .max()
               .item<double>()) < 5e-2);
  };
  compare(random_tensor({1, 6, 4, 4}, 1), 1);                    // float32
  compare(random_tensor({1, 6, 4, 4}, 1).to(at::kBFloat16), 2);  // three channels per group
  compare(random_tensor({2, 8, 4}, 1).to(at::kBFloat16), 2);     // not an image
  CHECK(DeviceGroupNorm(at::ones({8}, at::kHalf), at::zeros({8}, at::kHalf), {2}, counting)
            .run(at::empty({0, 8, 4, 4}, at::kHalf), std::nullopt)
            .size(0) == 0);
  CHECK(launched == 0);
}

TEST_CASE("kernels that compute something else are detected before use") {
  const c10::InferenceMode guard;
  const c10::Device cpu(at::kCPU);
  CHECK_NOTHROW(check_group_norm(emulated::launch, cpu));
  CHECK_THROWS_AS(check_group_norm([](const KernelLaunch&) {}, cpu), std::runtime_error);
  const KernelLauncher without_silu = [](KernelLaunch launch) {
    int none = 0;
    if (std::string_view(launch.kernel).starts_with("normalize")) launch.arguments.back() = &none;
    emulated::launch(launch);
  };
  CHECK_THROWS_AS(check_group_norm(without_silu, cpu), std::runtime_error);
}
