// A product of a few rows with a quantized matrix of 4 or 8 bits. core/kernels/few_rows.py says how it is laid out.
//
// Python declares in this namespace: BITS, BATCH_TILES, ROW_TILES, CHUNK, WARPS.
#pragma once

#include "primitives.cuh"

namespace corelm_few_rows {
using namespace corelm_cuda;

// A lane holds 16 bytes of a row at a time, four lanes a slice of one: OCTETS times 8 features each.
constexpr int LANE = 128 / BITS, OCTETS = LANE / 8, SLICE = 4 * LANE, EACH = CHUNK / SLICE;
constexpr int STRIDE = CHUNK * 2 + 64, COLUMNS = 8 * BATCH_TILES, BLOCK_ROWS = WARPS * ROW_TILES * 16;

struct Weights {
  uint4 integers[ROW_TILES][2];
  u32 scales[ROW_TILES][2], biases[ROW_TILES][2];
};

// Two features of one group, to bfloat16: one rounding.
__device__ __forceinline__ u32 affine(u32 integers, u32 scale, u32 bias) {
  u32 whole, result;
  // 128 + n - 128; compute capability 8 has no difference of bfloat16, and multiplies by 1 as well.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(whole) : "r"(integers | 0x43004300u), "r"(0x3f803f80u), "r"(0xc300c300u));
#else
  asm("sub.rn.bf16x2 %0, %1, %2;" : "=r"(whole) : "r"(integers | 0x43004300u), "r"(0x43004300u));
#endif
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(whole), "r"(scale), "r"(bias));
  return result;
}

// The j-th octet of a lane, as four pairs in order.
__device__ __forceinline__ void octet(const uint4& v, int j, u32 scale, u32 bias, u32 (&pairs)[4]) {
  if constexpr (BITS == 4) {
    const u32 word = component(v, j);
    const u32 p0 = affine(word & 0x000f000fu, scale, bias), p1 = affine(word >> 4 & 0x000f000fu, scale, bias);
    const u32 p2 = affine(word >> 8 & 0x000f000fu, scale, bias), p3 = affine(word >> 12 & 0x000f000fu, scale, bias);
    pairs[0] = __byte_perm(p0, p1, 0x5410);
    pairs[1] = __byte_perm(p2, p3, 0x5410);
    pairs[2] = __byte_perm(p0, p1, 0x7632);
    pairs[3] = __byte_perm(p2, p3, 0x7632);
  } else {
    const float s = low(scale), b = low(bias);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const u32 word = component(v, 2 * j + half);
      float values[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)  // the byte in the mantissa of 2^23
        values[i] = fmaf(__uint_as_float(__byte_perm(word, 0x4b000000u, 0x7440u + i)) - 8388608.f, s, b);
      pairs[2 * half] = pack(values[0], values[1]);
      pairs[2 * half + 1] = pack(values[2], values[3]);
    }
  }
}

struct Matrix {
  const u8 *weight, *scales, *biases;
  int features;

  __device__ __forceinline__ void load(Weights& to, int first, int slice) const {
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    const int at = min(slice, features / SLICE - 1);
#pragma unroll
    for (int r = 0; r < ROW_TILES; ++r)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const u64 row = first + r * 16 + h * 8 + g;
        to.integers[r][h] = stream16(weight + row * (features / 8 * BITS) + at * 64 + t * 16);
        const u64 group = row * (features / 64) + at * SLICE / 64 + (BITS == 4 ? t >> 1 : 0);
        to.scales[r][h] = __ldg(reinterpret_cast<const u16*>(scales) + group) * 0x10001u;
        to.biases[r][h] = __ldg(reinterpret_cast<const u16*>(biases) + group) * 0x10001u;
      }
  }
};

// A chunk of the rows, in shared memory: octets that four lanes read together lie together.
__device__ __forceinline__ void stage(u8* to, const __nv_bfloat16* x, int rows, int features, int start, bool aligned) {
  for (int i = threadIdx.x; i < COLUMNS * CHUNK / 8; i += WARPS * 32) {
    const int row = i / (CHUNK / 8), o = i % (CHUNK / 8), slice = o / (SLICE / 8), within = o % (SLICE / 8);
    const int place = slice * (SLICE / 8) + within % OCTETS * 4 + within / OCTETS;
    const bool real = row < rows && start + o * 8 < features;
    const __nv_bfloat16* from = x + (real ? static_cast<u64>(row) * features + start + o * 8 : 0);
    if (aligned) {
      copy16_or_zeros(smem_address(to + row * STRIDE + place * 16), from, real);
    } else {
      for (int k = 0; k < 8; ++k)
        reinterpret_cast<__nv_bfloat16*>(to + row * STRIDE + place * 16)[k] = real ? from[k] : __nv_bfloat16(0.f);
    }
  }
  copy_commit();
}

__device__ __forceinline__ void multiply(float (&sums)[ROW_TILES][BATCH_TILES][4], const Weights& w, const u8* x) {
  const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
#pragma unroll
  for (int j = 0; j < OCTETS; ++j) {
    u32 a[ROW_TILES][2][4];
#pragma unroll
    for (int r = 0; r < ROW_TILES; ++r)
#pragma unroll
      for (int h = 0; h < 2; ++h) octet(w.integers[r][h], j, w.scales[r][h], w.biases[r][h], a[r][h]);
#pragma unroll
    for (int n = 0; n < BATCH_TILES; ++n) {
      const uint4 v = *reinterpret_cast<const uint4*>(x + (n * 8 + g) * STRIDE + (j * 4 + t) * 16);
#pragma unroll
      for (int r = 0; r < ROW_TILES; ++r) {
        mma(sums[r][n], a[r][0][0], a[r][1][0], a[r][0][1], a[r][1][1], v.x, v.y);
        mma(sums[r][n], a[r][0][2], a[r][1][2], a[r][0][3], a[r][1][3], v.z, v.w);
      }
    }
  }
}

__device__ __forceinline__ void put(__nv_bfloat16* to, float value) { *to = __float2bfloat16_rn(value); }
__device__ __forceinline__ void put(float* to, float value) { *to = value; }

// The chunks of the features that are this block's, of so many: parts of as many chunks as can be, and a rest.
struct Range {
  int first, last;
  __device__ __forceinline__ explicit Range(int features) {
    const int chunks = (features + CHUNK - 1) / CHUNK, each = (chunks + gridDim.y - 1) / gridDim.y;
    first = min(static_cast<int>(blockIdx.y) * each, chunks);
    last = min(first + each, chunks);
  }
};

template <typename Out>
__device__ __forceinline__ void product(const __nv_bfloat16* x, const Matrix& matrix, Out* out, int rows, u8* smem) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
  const int within = warp * ROW_TILES * 16, first = blockIdx.x * BLOCK_ROWS + within;
  const int features = matrix.features;
  const Range chunks(features);
  const bool aligned = (reinterpret_cast<u64>(x) & 15) == 0;
  float sums[ROW_TILES][BATCH_TILES][4];
#pragma unroll
  for (int i = 0; i < ROW_TILES * BATCH_TILES * 4; ++i) (&sums[0][0][0])[i] = 0.f;
  Weights ahead[2];
  matrix.load(ahead[0], first, chunks.first * EACH);
  matrix.load(ahead[1], first, chunks.first * EACH + 1);
  stage(smem + (chunks.first & 1) * COLUMNS * STRIDE, x, rows, features, chunks.first * CHUNK, aligned);
  for (int c = chunks.first; c < chunks.last; ++c) {
    if (c + 1 < chunks.last) stage(smem + (c + 1 & 1) * COLUMNS * STRIDE, x, rows, features, (c + 1) * CHUNK, aligned);
    else copy_commit();
    copy_wait<1>();
    __syncthreads();
    const u8* held = smem + (c & 1) * COLUMNS * STRIDE;
#pragma unroll
    for (int p = 0; p < EACH; ++p) {
      multiply(sums, ahead[p & 1], held + p * SLICE * 2);
      matrix.load(ahead[p & 1], first, c * EACH + p + 2);
    }
    __syncthreads();
  }
  float* turned = reinterpret_cast<float*>(smem);  // [BLOCK_ROWS][COLUMNS + 1]
#pragma unroll
  for (int r = 0; r < ROW_TILES; ++r)
#pragma unroll
    for (int n = 0; n < BATCH_TILES; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        turned[(within + r * 16 + (i >> 1) * 8 + g) * (COLUMNS + 1) + n * 8 + t * 2 + (i & 1)] = sums[r][n][i];
  __syncthreads();
  for (int i = threadIdx.x; i < rows * BLOCK_ROWS; i += WARPS * 32) {
    const int row = i / BLOCK_ROWS, n = i % BLOCK_ROWS;
    put(out + static_cast<u64>(row) * gridDim.x * BLOCK_ROWS + blockIdx.x * BLOCK_ROWS + n,
        turned[n * (COLUMNS + 1) + row]);
  }
}

// For arrays that begin where no wide load may.
template <typename Out>
__device__ __forceinline__ void slowly(const __nv_bfloat16* x, const u32* weight, const __nv_bfloat16* scales,
                                       const __nv_bfloat16* biases, int features, Out* out, int rows) {
  const Range chunks(features);
  for (int i = threadIdx.x; i < rows * BLOCK_ROWS; i += WARPS * 32) {
    const u64 row = i / BLOCK_ROWS, n = blockIdx.x * BLOCK_ROWS + i % BLOCK_ROWS;
    float sum = 0.f;
    for (int k = chunks.first * CHUNK; k < min(chunks.last * CHUNK, features); ++k) {
      const u32 word = weight[n * (features / 32 * BITS) + k / (32 / BITS)];
      const float integer = static_cast<float>(word >> k % (32 / BITS) * BITS & ((1u << BITS) - 1u));
      const u64 group = n * (features / 64) + k / 64;
      const float value = fmaf(integer, __bfloat162float(scales[group]), __bfloat162float(biases[group]));
      sum += __bfloat162float(__float2bfloat16_rn(value)) * __bfloat162float(x[row * features + k]);
    }
    put(out + row * gridDim.x * BLOCK_ROWS + n, sum);
  }
}
}  // namespace corelm_few_rows
