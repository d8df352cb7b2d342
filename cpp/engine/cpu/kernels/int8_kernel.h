// The kernels of QuantizedConv. Does not use the standard library, see direct_conv_kernel.h.
#pragma once

#include <stdint.h>

#include "cpu/kernels/direct_conv_kernel.h"

namespace diad::kernels {

// Quantization of floats to bytes: value = scale * (byte - zero). The scale is NaN if one of the values is
// not finite.
struct Quantization {
  float scale;
  int32_t zero;  // 0 to 255
};

// y[p][k] = bias[k] + residual[p][k] + s(p) scales[k] * sum over runs r and i of (x[p](r, i) - z(p)) w[k /
// 32][r][i][k % 32], where s and z are the quantization of p. Inputs and weights are packed as four bytes;
// inputs are unsigned, weights signed.
struct QuantizedArguments {
  ConvGeometry at;
  const int32_t* x;
  const int32_t* weights;             // [ceil(out_channels / 32)][runs][run_length][32]
  const int32_t* weight_sums;         // [ceil(out_channels / 32) * 32]
  const float* scales;                // scales of the weights, same shape
  const float* bias;                  // same shape
  const Quantization* quantizations;  // of the inputs
  int64_t pixels_of_each;             // output pixels per quantization
  const float* residual;              // as y, or null
  float* y;                           // [pixels][out_channels]
  int64_t out_channels;
  bool relu;
};

// Minimum and maximum of some values and 0. `poison` is 0, or NaN if a value is not finite.
struct Range {
  float least, greatest, poison;
};

// Kernels for AVX-512 with VNNI. convolution: see ConvKernel.
struct QuantizedKernels {
  void (*convolution)(const QuantizedArguments& arguments, int64_t block, int64_t first, int64_t last);
  void (*extend)(const float* values, int64_t count, Range& range);  // extends the range by the values
  // Rounds to nearest and clamps to 0..255.
  void (*quantize)(const float* values, int64_t count, Quantization by, uint8_t* bytes);
};

extern const QuantizedKernels quantized_vnni;

}  // namespace diad::kernels
