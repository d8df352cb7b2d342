#include "cpu/winograd_conv.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ops/zeros.h>
#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <vector>

#include "cpu/conv_tiling.h"
#include "cpu/kernel_dispatch.h"
#include "support/mmap_pool.h"
#include "support/thread_pool.h"

namespace diad {

namespace {

using kernels::kBlock;

constexpr int64_t kChannelMultiple = 16;
constexpr int64_t kMostPositions = 36;  // of a 6 x 6 tile
constexpr int64_t kMostOutputs = 16;

// Tiles that are transformed, multiplied and transformed back at a time: intermediate results stay in the
// caches.
constexpr int64_t kTilesAtOnce = 256;

at::Tensor empty_in(c10::Allocator* allocator, at::IntArrayRef sizes) {
  return at::detail::empty_generic(sizes, allocator, c10::DispatchKeySet(c10::DispatchKey::CPU), at::kFloat,
                                   std::nullopt);
}

// Tiles of the output, counted row by row and image by image, and the positions of their pixels in the input
// or output.
struct Tiling {
  int64_t images, height, width, channels, tile;
  int64_t times = 1;  // upsampling factor by repetition

  [[nodiscard]] int64_t rows() const { return (height + tile - 1) / tile; }
  [[nodiscard]] int64_t columns() const { return (width + tile - 1) / tile; }
  [[nodiscard]] int64_t count() const { return images * rows() * columns(); }

  // Pointers to the pixels of a square of `side` that begins `before` pixels above and left of the tile;
  // `outside` for pixels beyond the image.
  template <typename Float>
  void pixels(int64_t index, int64_t side, int64_t before, Float* image, Float* outside, Float** to) const {
    const int64_t column = index % columns() * tile - before,
                  row = index / columns() % rows() * tile - before;
    const int64_t line = width / times;
    Float* const start = image + index / (columns() * rows()) * (height / times) * line * channels;
    for (int64_t i = 0; i < side; ++i) {
      for (int64_t j = 0; j < side; ++j) {
        const int64_t y = row + i, x = column + j;
        const bool inside = y >= 0 && y < height && x >= 0 && x < width;
        to[i * side + j] = inside ? start + (y / times * line + x / times) * channels : outside;
      }
    }
  }
};

// `work`: floating-point operations per action.
void each_in_parallel(int64_t count, double work, const auto& action) {
  parallel_for(count, std::max<int64_t>(1, static_cast<int64_t>(kWorkOfAThread / work)),
               [&](int64_t begin, int64_t end) {
                 for (int64_t i = begin; i < end; ++i) action(i);
               });
}

}  // namespace

bool WinogradConv::available(const at::Tensor& weight) {
  return cpu_kernels() != nullptr && weight.size(2) == 3 && weight.size(3) == 3 &&
         weight.size(0) % kChannelMultiple == 0 && weight.size(1) % kChannelMultiple == 0;
}

WinogradConv::WinogradConv(const at::Tensor& weight, const std::optional<at::Tensor>& bias, Shape shape)
    : bias_(bias ? bias->contiguous() : at::zeros({weight.size(0)}, at::kFloat)),
      shape_(shape),
      out_channels_(weight.size(0)),
      channels_(weight.size(1)) {
  const int64_t blocks = (out_channels_ + kBlock - 1) / kBlock;
  c10::Allocator* const lasting = mapped_allocator();
  const at::Tensor taps = empty_in(lasting, {blocks, channels_, 9, kBlock});
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t first = block * kBlock, count = std::min(kBlock, out_channels_ - first);
    at::Tensor to = taps.select(0, block);  // [C, 9, 32]
    if (count < kBlock) to.zero_();
    to.narrow(2, 0, count)
        .copy_(weight.narrow(0, first, count).reshape({count, channels_, 9}).permute({1, 2, 0}));
  }
  weights_ = shape.stored ? transform(taps, lasting) : taps;
}

at::Tensor WinogradConv::transform(const at::Tensor& taps, c10::Allocator* allocator) const {
  const int64_t side = shape_.tile + 2, positions = side * side, blocks = taps.size(0),
                of_a_block = channels_ * kBlock;
  at::Tensor result = empty_in(allocator, {positions, blocks, channels_, kBlock});
  const auto transform_block =
      shape_.tile == 2 ? cpu_kernels()->winograd.weights2 : cpu_kernels()->winograd.weights4;
  const auto* const from = taps.const_data_ptr<float>();
  auto* const to = result.mutable_data_ptr<float>();
  each_in_parallel(blocks, static_cast<double>(4 * positions * of_a_block), [&](int64_t block) {
    transform_block(from + 9 * block * of_a_block, channels_, to + block * of_a_block, blocks * of_a_block);
  });
  return result;
}

at::Tensor WinogradConv::run(const at::Tensor& x, const std::optional<at::Tensor>& residual,
                             bool relu) const {
  const at::Tensor input = x.contiguous(at::MemoryFormat::ChannelsLast);
  const int64_t times = shape_.upsampled ? 2 : 1, height = x.size(2) * times, width = x.size(3) * times;
  const Tiling inputs{x.size(0), height, width, channels_, shape_.tile, times},
      outputs{x.size(0), height, width, out_channels_, shape_.tile};
  at::Tensor y =
      pooled_empty({x.size(0), out_channels_, height, width}, at::kFloat, at::MemoryFormat::ChannelsLast);
  const at::Tensor added =
      residual ? residual->expand(y.sizes()).contiguous(at::MemoryFormat::ChannelsLast) : at::Tensor();

  const int64_t side = shape_.tile + 2, positions = side * side,
                blocks = (out_channels_ + kBlock - 1) / kBlock, most = std::min(kTilesAtOnce, inputs.count());
  const at::Tensor transformed = pooled_empty({positions * most * channels_}, at::kFloat),
                   products = pooled_empty({positions * most * out_channels_}, at::kFloat),
                   zeros = at::zeros({std::max(channels_, blocks * kBlock)}, at::kFloat);
  const at::Tensor ready = shape_.stored ? weights_ : transform(weights_, pooled_allocator());
  const auto& kernels = *cpu_kernels();
  const auto transform_input = shape_.tile == 2 ? kernels.winograd.input2 : kernels.winograd.input4;
  const auto transform_output = shape_.tile == 2 ? kernels.winograd.output2 : kernels.winograd.output4;
  const auto* const from = input.const_data_ptr<float>();
  const auto* const nothing = zeros.const_data_ptr<float>();
  const auto* const weights = ready.const_data_ptr<float>();
  const auto* const residuals = residual ? added.const_data_ptr<float>() : nullptr;
  auto* const v = transformed.mutable_data_ptr<float>();
  auto* const m = products.mutable_data_ptr<float>();
  auto* const to = y.mutable_data_ptr<float>();

  for (int64_t start = 0; start < inputs.count(); start += most) {
    const int64_t tiles = std::min(most, inputs.count() - start);
    each_in_parallel(tiles, static_cast<double>(4 * positions * channels_), [&](int64_t tile) {
      const float* pixels[kMostPositions];
      inputs.pixels(start + tile, side, 1, from, nothing, pixels);
      transform_input(pixels, channels_, v + tile * channels_, tiles * channels_);
    });

    const int64_t chunks = (tiles + kernels::kMostPixels - 1) / kernels::kMostPixels;
    const double work = 2.0 * static_cast<double>(std::min(tiles, kernels::kMostPixels) * channels_ * kBlock);
    each_in_parallel(positions * chunks * blocks, work, [&](int64_t task) {
      const int64_t position = task / (chunks * blocks), chunk = task / blocks % chunks,
                    block = task % blocks;
      const PlainProduct product{v + position * tiles * channels_,
                                 channels_,
                                 tiles,
                                 channels_,
                                 weights + position * blocks * channels_ * kBlock,
                                 nothing,
                                 out_channels_,
                                 m + position * tiles * out_channels_,
                                 out_channels_};
      const int64_t first = chunk * kernels::kMostPixels;
      kernels.convolution(product.arguments(), block, first, std::min(first + kernels::kMostPixels, tiles));
    });

    each_in_parallel(tiles, static_cast<double>(4 * positions * out_channels_), [&](int64_t tile) {
      float* pixels[kMostOutputs];
      const float* summands[kMostOutputs];
      outputs.pixels<float>(start + tile, shape_.tile, 0, to, nullptr, pixels);
      if (residuals) outputs.pixels<const float>(start + tile, shape_.tile, 0, residuals, nullptr, summands);
      transform_output({m + tile * out_channels_, tiles * out_channels_, out_channels_,
                        bias_.const_data_ptr<float>(), residuals ? summands : nullptr, pixels, relu});
    });
  }
  return y;
}

}  // namespace diad
