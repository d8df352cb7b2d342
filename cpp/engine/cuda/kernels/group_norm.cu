// GroupNorm of channels-last half-precision images on a CUDA device, fused with a per-channel addition before
// it and SiLU after it, in two passes over the image. cuda/cuda_group_norm.h launches these kernels.
// cuda/nvrtc.h compiles this source at run time; cpp/tests/cuda/cuda_group_norm_test.cc compiles it for the
// CPU.
//
// A block processes the pixel rows of blockIdx.x, the groups of blockIdx.y and the image of blockIdx.z.
// Thread (x, y) processes two neighboring channels, pair x of the block's groups, and every blockDim.y-th
// pixel starting at y. The order of summation depends on sizes only.
#ifdef __CUDACC_RTC__

struct Float16 {
  static __device__ float widen(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
  }
  static __device__ unsigned short narrow(float value) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
  }
};

struct BFloat16 {
  static __device__ float widen(unsigned short bits) {
    return __uint_as_float(static_cast<unsigned>(bits) << 16);
  }
  static __device__ unsigned short narrow(float value) {  // to nearest, ties to even; keeps NaN
    const unsigned bits = __float_as_uint(value);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<unsigned short>((bits >> 16) | 0x40u);
    return static_cast<unsigned short>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
  }
};

#endif

struct Pair {
  float low, high;
};

template <typename Type>
__device__ Pair unpack(unsigned bits) {
  return {Type::widen(static_cast<unsigned short>(bits & 0xFFFFu)),
          Type::widen(static_cast<unsigned short>(bits >> 16))};
}

template <typename Type>
__device__ unsigned pack(Pair pair) {
  return static_cast<unsigned>(Type::narrow(pair.low)) |
         (static_cast<unsigned>(Type::narrow(pair.high)) << 16);
}

// Work of a thread: its pair of channels, and the pivot that is subtracted from the values of its group to
// avoid cancellation: the group's first channel in the image's first pixel.
template <typename Type>
struct Place {
  long long pairs;        // per pixel
  long long first;        // start of the image, in pairs
  long long pair;         // of this thread, within the pixel
  unsigned group;         // of this thread, within the block
  unsigned first_group;   // of the block
  unsigned block_groups;  // groups per block
  Pair added;
  float pivot;

  __device__ Place(const unsigned* x, const unsigned* shift, long long shift_stride, long long pixels,
                   unsigned groups, unsigned group_pairs) {
    pairs = static_cast<long long>(groups) * group_pairs;
    first = blockIdx.z * pixels * pairs;
    pair = static_cast<long long>(blockIdx.y) * blockDim.x + threadIdx.x;
    group = threadIdx.x / group_pairs;
    block_groups = blockDim.x / group_pairs;
    first_group = blockIdx.y * block_groups;
    const unsigned* const shifts = shift == nullptr ? nullptr : shift + blockIdx.z * shift_stride;
    const long long lead = static_cast<long long>(first_group + group) * group_pairs;
    added = shifts == nullptr ? Pair{0, 0} : unpack<Type>(shifts[pair]);
    pivot = unpack<Type>(x[first + lead]).low + (shifts == nullptr ? 0 : unpack<Type>(shifts[lead]).low);
  }
};

// Writes partial [images, chunks, groups, 2]: sums of x - pivot and of its square over a chunk of `rows`
// pixels. Needs blockDim.x * blockDim.y * 2 floats of shared memory.
template <typename Type>
__device__ void sum_chunk(const unsigned* x, const unsigned* shift, long long shift_stride, float* partial,
                          long long pixels, unsigned groups, unsigned group_pairs, unsigned rows,
                          float* shared) {
  const Place<Type> at(x, shift, shift_stride, pixels, groups, group_pairs);
  const float low = at.added.low - at.pivot, high = at.added.high - at.pivot;
  const long long begin = static_cast<long long>(blockIdx.x) * rows,
                  end = begin + rows < pixels ? begin + rows : pixels;
  float sum = 0, square = 0;
  for (long long pixel = begin + threadIdx.y; pixel < end; pixel += blockDim.y) {
    const Pair value = unpack<Type>(x[at.first + pixel * at.pairs + at.pair]);
    const float a = value.low + low, b = value.high + high;
    sum += a + b;
    square += a * a + b * b;
  }
  const unsigned thread = threadIdx.y * blockDim.x + threadIdx.x;
  shared[2 * thread] = sum;
  shared[2 * thread + 1] = square;
  __syncthreads();
  if (thread >= at.block_groups) return;
  sum = square = 0;
  for (unsigned y = 0; y < blockDim.y; ++y) {
    for (unsigned i = 0; i < group_pairs; ++i) {
      const unsigned from = y * blockDim.x + thread * group_pairs + i;
      sum += shared[2 * from];
      square += shared[2 * from + 1];
    }
  }
  float* const out = partial + 2 * ((static_cast<long long>(blockIdx.z) * gridDim.x + blockIdx.x) * groups +
                                    at.first_group + thread);
  out[0] = sum;
  out[1] = square;
}

// y = (x + shift - mean) / sqrt(variance + eps) * weight + bias, then y / (1 + exp(-y)) if `silu`. Uses the
// same grid as sum_chunk. Needs blockDim.x * blockDim.y * 2 floats of shared memory.
template <typename Type>
__device__ void normalize_chunk(const unsigned* x, const unsigned* shift, long long shift_stride,
                                const float* partial, const unsigned* weight, const unsigned* bias,
                                unsigned* y, long long pixels, unsigned groups, unsigned group_pairs,
                                unsigned rows, float eps, int silu, float* shared) {
  const Place<Type> at(x, shift, shift_stride, pixels, groups, group_pairs);
  const unsigned chunks = gridDim.x, thread = threadIdx.y * blockDim.x + threadIdx.x;
  const unsigned parts = blockDim.x * blockDim.y / at.block_groups, part = thread / at.block_groups,
                 of = thread % at.block_groups;
  if (part < parts) {
    float sum = 0, square = 0;
    for (unsigned chunk = part; chunk < chunks; chunk += parts) {
      const float* const from =
          partial +
          2 * ((static_cast<long long>(blockIdx.z) * chunks + chunk) * groups + at.first_group + of);
      sum += from[0];
      square += from[1];
    }
    shared[2 * thread] = sum;
    shared[2 * thread + 1] = square;
  }
  __syncthreads();
  if (thread < at.block_groups) {
    float sum = 0, square = 0;
    for (unsigned i = 0; i < parts; ++i) {
      sum += shared[2 * (i * at.block_groups + thread)];
      square += shared[2 * (i * at.block_groups + thread) + 1];
    }
    const float count = static_cast<float>(2 * group_pairs * pixels), mean = sum / count;
    const float variance = square / count - mean * mean;
    // Safe without a barrier: no other thread reads part 0 of this group.
    shared[2 * thread] = mean;
    shared[2 * thread + 1] = 1 / sqrtf((variance > 0 ? variance : 0) + eps);
  }
  __syncthreads();
  const float mean = shared[2 * at.group] + at.pivot, inverse = shared[2 * at.group + 1];
  const Pair gain = unpack<Type>(weight[at.pair]), base = unpack<Type>(bias[at.pair]);
  const Pair scale{inverse * gain.low, inverse * gain.high};
  const Pair offset{base.low + (at.added.low - mean) * scale.low,
                    base.high + (at.added.high - mean) * scale.high};
  const long long begin = static_cast<long long>(blockIdx.x) * rows,
                  end = begin + rows < pixels ? begin + rows : pixels;
  for (long long pixel = begin + threadIdx.y; pixel < end; pixel += blockDim.y) {
    const long long place = at.first + pixel * at.pairs + at.pair;
    Pair value = unpack<Type>(x[place]);
    value.low = value.low * scale.low + offset.low;
    value.high = value.high * scale.high + offset.high;
    if (silu) {
      value.low /= 1 + expf(-value.low);
      value.high /= 1 + expf(-value.high);
    }
    y[place] = pack<Type>(value);
  }
}

#ifdef __CUDACC_RTC__

extern __shared__ float block_memory[];

#define DIAD_KERNELS_OF(TYPE, SUFFIX)                                                                        \
  extern "C" __global__ void sums_##SUFFIX(const unsigned* x, const unsigned* shift, long long shift_stride, \
                                           float* partial, long long pixels, unsigned groups,                \
                                           unsigned group_pairs, unsigned rows) {                            \
    sum_chunk<TYPE>(x, shift, shift_stride, partial, pixels, groups, group_pairs, rows, block_memory);       \
  }                                                                                                          \
  extern "C" __global__ void normalize_##SUFFIX(                                                             \
      const unsigned* x, const unsigned* shift, long long shift_stride, const float* partial,                \
      const unsigned* weight, const unsigned* bias, unsigned* y, long long pixels, unsigned groups,          \
      unsigned group_pairs, unsigned rows, float eps, int silu) {                                            \
    normalize_chunk<TYPE>(x, shift, shift_stride, partial, weight, bias, y, pixels, groups, group_pairs,     \
                          rows, eps, silu, block_memory);                                                    \
  }

DIAD_KERNELS_OF(Float16, f16)
DIAD_KERNELS_OF(BFloat16, bf16)

#endif
