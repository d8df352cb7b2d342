// The inner loops of QuantizedConv. As in direct_conv_kernel.h, nothing of the standard library is used here.
#pragma once

#include <stdint.h>

#include "cpu/kernels/direct_conv_kernel.h"

namespace diad::kernels {

// How floats became bytes: value = scale * (byte - zero). The scale is NaN where one of the values was.
struct Quantization {
  float scale;
  int32_t zero;  // 0 to 255
};

// y[p][k] = bias[k] + residual[p][k] + s(p) scales[k] * sum over runs r and i of (x[p](r, i) - z(p)) w[k /
// 32][r][i][k % 32], where s and z are of p's quantization. Inputs and weights are four bytes at a time, the
// inputs unsigned, the weights signed.
struct QuantizedArguments {
  ConvGeometry at;
  const int32_t* x;
  const int32_t* weights;             // [ceil(out_channels / 32)][runs][run_length][32]
  const int32_t* weight_sums;         // [ceil(out_channels / 32) * 32]
  const float* scales;                // of the weights, likewise
  const float* bias;                  // likewise
  const Quantization* quantizations;  // of the inputs
  int64_t pixels_of_each;             // output pixels for which one of them holds
  const float* residual;              // as y, or null
  float* y;                           // [pixels][out_channels]
  int64_t out_channels;
  bool relu;
};

// Least and greatest of some values and 0. `poison` is 0, or NaN where a value is not finite.
struct Range {
  float least, greatest, poison;
};

// For AVX-512 with VNNI. convolution: as ConvKernel.
struct QuantizedKernels {
  void (*convolution)(const QuantizedArguments& arguments, int64_t block, int64_t first, int64_t last);
  void (*extend)(const float* values, int64_t count, Range& range);  // the range by the values
  void (*quantize)(const float* values, int64_t count, Quantization by,
                   uint8_t* bytes);  // to the nearest, at most 0 and 255
};

extern const QuantizedKernels quantized_vnni;

}  // namespace diad::kernels
