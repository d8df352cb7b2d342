// Kernels over rows of floats with an exponential or a sum, compiled once per instruction set (avx2.cc,
// avx512.cc). Does not use the standard library, see direct_conv_kernel.h.
#pragma once

#include <stdint.h>

namespace diad::kernels {

struct RowKernels {
  // y = (x - mean) / sqrt(variance + eps) * gain + base, for each row.
  void (*normalize)(const float* x, const float* gain, const float* base, int64_t rows, int64_t width,
                    float eps, float* y);
  // x [rows, 2 width] -> y [rows, width]: the first half of a row times GELU of the second half.
  void (*geglu)(const float* x, int64_t rows, int64_t width, float* y);
  // Replaces x by e^(scale * (x - row maximum)) in place and writes the sum of each row to `sums`. Rows are
  // `stride` apart. scale >= 0.
  void (*softmax_exp)(float* x, int64_t rows, int64_t width, int64_t stride, float scale, float* sums);
  // y = x / divisor of the row. Rows of y are `stride` apart.
  void (*divide)(const float* x, const float* divisors, int64_t rows, int64_t width, int64_t stride,
                 float* y);
  // y = v / (1 + e^-v), v = x * scale + offset, with one scale and offset per column.
  void (*scale_silu)(const float* x, const float* scale, const float* offset, int64_t rows, int64_t width,
                     float* y);
};

extern const RowKernels rows_avx512, rows_avx2;

template <typename Vector>
struct RowLoops {
  using V = typename Vector::Type;
  static constexpr int64_t kWidth = Vector::kWidth;

  static V number(float value) { return Vector::broadcast(value); }

  // Calls action(i, load, store) for every vector of a row. The last one can be partial; its other lanes are
  // loaded as 0.
  template <typename Action>
  static void each(int64_t width, const Action& action) {
    int64_t i = 0;
    for (; i + kWidth <= width; i += kWidth) {
      action(
          i, [](const float* from) { return Vector::load(from); },
          [](float* to, V value) { Vector::store(to, value); });
    }
    if (i == width) return;
    const int64_t left = width - i;
    action(
        i, [left](const float* from) { return Vector::load_first(from, left); },
        [left](float* to, V value) { Vector::store_first(to, left, value); });
  }

  // e^t as 2^n times a polynomial of the remainder (Cephes coefficients, relative error below 2e-7). Clamps t
  // to -87..88; keeps NaN.
  static V exponential(V t) {
    t = Vector::min(number(88), Vector::max(number(-87), t));
    const V n = Vector::round(Vector::multiply(t, number(1.44269504F)));
    const V r = Vector::negative_multiply_add(n, number(-2.12194440e-4F),
                                              Vector::negative_multiply_add(n, number(0.693359375F), t));
    V p = number(1.9875691500e-4F);
    p = Vector::multiply_add(p, r, number(1.3981999507e-3F));
    p = Vector::multiply_add(p, r, number(8.3334519073e-3F));
    p = Vector::multiply_add(p, r, number(4.1665795894e-2F));
    p = Vector::multiply_add(p, r, number(1.6666665459e-1F));
    p = Vector::multiply_add(p, r, number(5.0000001201e-1F));
    p = Vector::add(Vector::multiply_add(p, Vector::multiply(r, r), r), number(1));
    return Vector::times_power_of_two(p, n);
  }

  // 2^t for t <= 0 or slightly above: a polynomial of degree 5 between integers, fitted for minimal relative
  // error (below 2e-7 in float32). Clamps t to at least -126; keeps NaN.
  static V power_of_two(V t) {
    t = Vector::max(number(-126), t);
    const V n = Vector::round(t), r = Vector::subtract(t, n);
    V p = number(1.326472725e-3F);
    p = Vector::multiply_add(p, r, number(9.671512688e-3F));
    p = Vector::multiply_add(p, r, number(5.550733744e-2F));
    p = Vector::multiply_add(p, r, number(2.402224208e-1F));
    p = Vector::multiply_add(p, r, number(6.931469776e-1F));
    return Vector::times_power_of_two(Vector::multiply_add(p, r, number(1)), n);
  }

  // The standard normal CDF: Abramowitz and Stegun 7.1.26 for erf, absolute error below 1e-7.
  static V normal_cdf(V x) {
    const V z = Vector::multiply(Vector::absolute(x), number(0.707106781F));
    const V t = Vector::divide(number(1), Vector::multiply_add(number(0.3275911F), z, number(1)));
    V p = number(1.061405429F);
    p = Vector::multiply_add(p, t, number(-1.453152027F));
    p = Vector::multiply_add(p, t, number(1.421413741F));
    p = Vector::multiply_add(p, t, number(-0.284496736F));
    p = Vector::multiply_add(p, t, number(0.254829592F));
    const V power = exponential(Vector::negative_multiply_add(z, z, number(0)));
    const V above = Vector::multiply(Vector::multiply(number(0.5F), Vector::multiply(p, t)), power);  // |x|
    return Vector::where_negative(x, above, Vector::subtract(number(1), above));
  }

  static float sum_of(const float* x, int64_t width) {
    const int64_t whole = width / kWidth * kWidth;
    V total = number(0);
    for (int64_t i = 0; i < whole; i += kWidth) total = Vector::add(total, Vector::load(x + i));
    float sum = Vector::sum(total);
    for (int64_t i = whole; i < width; ++i) sum += x[i];
    return sum;
  }

  static void normalize(const float* x, const float* gain, const float* base, int64_t rows, int64_t width,
                        float eps, float* y) {
    const float count = static_cast<float>(width);
    const int64_t whole = width / kWidth * kWidth;
    for (int64_t row = 0; row < rows; ++row, x += width, y += width) {
      const float mean = sum_of(x, width) / count;
      const V middle = number(mean);
      V squares = number(0);
      for (int64_t i = 0; i < whole; i += kWidth) {
        const V difference = Vector::subtract(Vector::load(x + i), middle);
        squares = Vector::multiply_add(difference, difference, squares);
      }
      float total = Vector::sum(squares);
      for (int64_t i = whole; i < width; ++i) total += (x[i] - mean) * (x[i] - mean);
      const V variance = number(total / count + eps);
      const V inverse = Vector::divide(number(1), Vector::root(variance));
      each(width, [&](int64_t i, auto load, auto store) {
        const V scaled = Vector::multiply(Vector::subtract(load(x + i), middle), inverse);
        store(y + i, Vector::multiply_add(scaled, load(gain + i), load(base + i)));
      });
    }
  }

  static void geglu(const float* x, int64_t rows, int64_t width, float* y) {
    for (int64_t row = 0; row < rows; ++row, x += 2 * width, y += width) {
      each(width, [&](int64_t i, auto load, auto store) {
        const V by = load(x + width + i);
        store(y + i, Vector::multiply(load(x + i), Vector::multiply(by, normal_cdf(by))));
      });
    }
  }

  static void softmax_exp(float* x, int64_t rows, int64_t width, int64_t stride, float scale, float* sums) {
    const int64_t whole = width / kWidth * kWidth;
    const V factor = number(scale * 1.44269504F);
    for (int64_t row = 0; row < rows; ++row, x += stride) {
      V most = number(x[0]);
      for (int64_t i = 0; i < whole; i += kWidth) most = Vector::max(most, Vector::load(x + i));
      float greatest = Vector::greatest(most);
      for (int64_t i = whole; i < width; ++i) greatest = x[i] > greatest ? x[i] : greatest;
      const V highest = number(greatest);
      const auto power = [&](V value) {
        return power_of_two(Vector::multiply(Vector::subtract(value, highest), factor));
      };
      V total = number(0);
      for (int64_t i = 0; i < whole; i += kWidth) {
        const V value = power(Vector::load(x + i));
        Vector::store(x + i, value);
        total = Vector::add(total, value);
      }
      float sum = Vector::sum(total);
      if (whole < width) {
        Vector::store_first(x + whole, width - whole, power(Vector::load_first(x + whole, width - whole)));
        for (int64_t i = whole; i < width; ++i) sum += x[i];
      }
      sums[row] = sum;
    }
  }

  static void divide(const float* x, const float* divisors, int64_t rows, int64_t width, int64_t stride,
                     float* y) {
    for (int64_t row = 0; row < rows; ++row, x += width, y += stride) {
      const V factor = Vector::divide(number(1), number(divisors[row]));
      each(width,
           [&](int64_t i, auto load, auto store) { store(y + i, Vector::multiply(load(x + i), factor)); });
    }
  }

  static void scale_silu(const float* x, const float* scale, const float* offset, int64_t rows, int64_t width,
                         float* y) {
    for (int64_t row = 0; row < rows; ++row, x += width, y += width) {
      each(width, [&](int64_t i, auto load, auto store) {
        const V v = Vector::multiply_add(load(x + i), load(scale + i), load(offset + i));
        const V power = exponential(Vector::subtract(number(0), v));
        store(y + i, Vector::divide(v, Vector::add(number(1), power)));
      });
    }
  }
};

template <typename Vector>
constexpr RowKernels row_kernels() {
  using Loops = RowLoops<Vector>;
  return {Loops::normalize, Loops::geglu, Loops::softmax_exp, Loops::divide, Loops::scale_silu};
}

}  // namespace diad::kernels
