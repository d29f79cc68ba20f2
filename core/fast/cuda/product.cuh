// The matrix-vector product of one block's rows, on the tensor cores, and its input in shared memory.
//
// A quantized weight is an integer of 4 or 8 bits, OR-ed into the mantissa of float16's 1024, so that one logical
// operation unpacks two; a 4-bit one that stands 4 bits higher counts 16 times, and its input a sixteenth. The scale
// multiplies a group's float32 sum; the 1024s and the biases leave with one more product, in bfloat16, of the group's
// scales and biases with the sums of its inputs, which are kept as two bfloat16 each. The input is scaled by a power of
// two, so that its largest fits float16. Sums over the input may run in any order, so weights keep the order they have
// in memory, and the input takes theirs.
#pragma once

#include "stream.cuh"

namespace corelm {
using namespace corelm_cuda;

// Input in shared memory, one row a sequence: octets of 8 features in the order in which units take them.
template <int W>
__device__ __forceinline__ void put_octet(u8* x, u16* sums, int features, int b, int octet, const float (&value)[8],
                                          bool real) {
  uint4 v;
  int place = octet;
  if constexpr (W == 16) {
    v = make_uint4(pack(value[0], value[1]), pack(value[2], value[3]), pack(value[4], value[5]),
                   pack(value[6], value[7]));
  } else if constexpr (W == 4) {
    constexpr float S = 0.0625f;
    v = make_uint4(pack_half(value[0], value[4]), pack_half(value[1] * S, value[5] * S), pack_half(value[2], value[6]),
                   pack_half(value[3] * S, value[7] * S));
    place = (octet & ~15) | (octet & 3) << 2 | (octet >> 2 & 3);
  } else {
    v = make_uint4(pack_half(value[0], value[2]), pack_half(value[1], value[3]), pack_half(value[4], value[6]),
                   pack_half(value[5], value[7]));
    place = (octet & ~7) | (octet & 1) << 2 | (octet >> 1 & 3);
  }
  if (real) *reinterpret_cast<uint4*>(x + b * (features * 2 + 64) + place * 16) = v;
  if constexpr (W != 16) {  // 8 neighbouring lanes hold one group
    float even = value[0] + value[2] + value[4] + value[6], odd = value[1] + value[3] + value[5] + value[7];
    float sum = even + odd, offset = even * -1024.f + odd * (W == 4 ? -64.f : -1024.f);
#pragma unroll
    for (int lanes = 1; lanes < 8; lanes *= 2) {
      sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
      offset += __shfl_xor_sync(0xffffffffu, offset, lanes);
    }
    if (real && (octet & 7) == 0) {
      const int stride = features / 64 + 8, group = octet >> 3;
      u16* to = sums + b * 4 * stride + group;
      const __nv_bfloat16 s = __float2bfloat16_rn(sum), o = __float2bfloat16_rn(offset);
      to[0] = bits(s);
      to[stride] = bits(__float2bfloat16_rn(sum - __bfloat162float(s)));
      to[2 * stride] = bits(o);
      to[3 * stride] = bits(__float2bfloat16_rn(offset - __bfloat162float(o)));
    }
  }
}

// The power of two that takes the largest of an input to between 2^12 and 2^13; 1 for zeros.
__device__ __forceinline__ float input_scale(float largest) {
  const int exponent = static_cast<int>(__float_as_uint(largest) >> 23);
  return largest > 0.f ? __uint_as_float(static_cast<u32>(min(max(266 - exponent, 1), 254)) << 23) : 1.f;
}

__device__ __forceinline__ u32 integers(u32 q, u32 mask) { return (q & mask) | 0x64006400u; }

// The sums of this warp's units go to parts[tile + warp][row][sequence]: no two warps and tiles share a place, since
// each step along the units moves to the next tile or the next warp.
template <int KIND>
__device__ __forceinline__ void product(Stream& stream, u32& slot, const u8* ring, const u8* x, const u16* sums,
                                        const u8* zeros, float* parts) {
  constexpr int W = BITS(KIND), U = UNITS(KIND), FEATURES = U * 2048 / W;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
  const Share share = stream.shares[KIND * WARPS + warp];
  const int batch = (g >> 1) < BATCH ? g >> 1 : 0;
  // Columns of the second operand: 2b and 2b + 1 are sequence b. With 4 bits, the two groups in 64 bytes of a row take
  // one column each, and the other's inputs are zeros there.
  const bool mine = W != 4 || (g & 1) == (t >> 1);
  const u8* input = x + batch * (FEATURES * 2 + 64) + t * 16;
  const u8* my_input = mine ? input : zeros + t * 16;
  const int step = mine ? 2048 * 2 / W : 0;  // bytes of input a unit
  const u16* my_sums = sums + (batch * 4 + (g & 1)) * (FEATURES / 64 + 8);
  int tile = KIND == 3 ? share.segment / CHOSEN : share.segment;
  int column = share.column + (KIND == 3 ? share.segment % CHOSEN * SEGMENT(3) : 0);
  float total[2] = {0.f, 0.f}, fixed[4] = {0.f, 0.f, 0.f, 0.f}, even[4] = {0.f, 0.f, 0.f, 0.f};
  for (int unit = share.begin; unit < share.end; ++unit) {
    copy_wait<STAGES - 1>();
    __syncwarp();
    const u8* at = ring + slot * UNIT_BYTES;
    const u8* in = my_input + column * step;
    if constexpr (W == 16) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const uint4 a = *reinterpret_cast<const uint4*>(at + c * 1024 + lane * 16);
        const uint4 b = *reinterpret_cast<const uint4*>(at + c * 1024 + 512 + lane * 16);
        const uint4 v = *reinterpret_cast<const uint4*>(in + c * 64);
        mma(fixed, a.x, b.x, a.y, b.y, v.x, v.y);
        mma(even, a.z, b.z, a.w, b.w, v.z, v.w);
      }
    } else {
      constexpr int GROUPS = W == 4 ? 8 : 4;  // of a unit's row
      const u8* scales = at + 4096;
      uint4 s0, s1;
      if constexpr (W == 4) {
        s0 = *reinterpret_cast<const uint4*>(scales + g * 16);
        s1 = *reinterpret_cast<const uint4*>(scales + (8 + g) * 16);
      } else {
        const uint2 e0 = *reinterpret_cast<const uint2*>(scales + g * 8);
        const uint2 e1 = *reinterpret_cast<const uint2*>(scales + (8 + g) * 8);
        s0 = make_uint4(e0.x, e0.y, 0, 0);
        s1 = make_uint4(e1.x, e1.y, 0, 0);
      }
      uint4 a[4], b[4];
      float d[4][4];
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        a[c] = *reinterpret_cast<const uint4*>(at + c * 1024 + lane * 16);
        b[c] = *reinterpret_cast<const uint4*>(at + c * 1024 + 512 + lane * 16);
        d[c][0] = d[c][1] = d[c][2] = d[c][3] = 0.f;
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {  // four independent sums in turn: one waits for the tensor cores
        if constexpr (W == 4) {
          uint4 v[4];
#pragma unroll
          for (int c = 0; c < 4; ++c) v[c] = *reinterpret_cast<const uint4*>(in + c * 256 + i * 64);
          constexpr u32 L = 0x000f000fu, H = 0x00f000f0u;
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            const u32 p = component(a[c], i), q = component(b[c], i);
            mma_half(d[c], integers(p, L), integers(q, L), integers(p, H), integers(q, H), v[c].x, v[c].y);
          }
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            const u32 p = component(a[c], i) >> 8, q = component(b[c], i) >> 8;
            mma_half(d[c], integers(p, L), integers(q, L), integers(p, H), integers(q, H), v[c].z, v[c].w);
          }
        } else {
          constexpr u32 L = 0x00ff00ffu;
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            const uint2 v = *reinterpret_cast<const uint2*>(in + c * 128 + (i >> 1) * 64 + (i & 1) * 8);
            const u32 p = component(a[c], i), q = component(b[c], i);
            mma_half(d[c], integers(p, L), integers(q, L), integers(p >> 8, L), integers(q >> 8, L), v.x, v.y);
          }
        }
      }
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        if constexpr (W == 4) {
          total[0] += low(component(s0, c)) * d[c][0] + high(component(s0, c)) * d[c][1];
          total[1] += low(component(s1, c)) * d[c][2] + high(component(s1, c)) * d[c][3];
        } else {
          total[0] += element(s0, c) * d[c][0];
          total[1] += element(s1, c) * d[c][2];
        }
      }
      const u32* pairs = reinterpret_cast<const u32*>(scales) + (t < GROUPS / 2 ? t : 0);
      const u32* to_add = reinterpret_cast<const u32*>(my_sums + column * GROUPS) + (t < GROUPS / 2 ? t : 0);
      const u32 keep = t < GROUPS / 2 ? 0xffffffffu : 0u;
      constexpr int ROW = GROUPS / 2;
      mma(fixed, pairs[(16 + g) * ROW] & keep, pairs[(24 + g) * ROW] & keep, pairs[g * ROW] & keep,
          pairs[(8 + g) * ROW] & keep, to_add[0] & keep, to_add[FEATURES / 64 + 8] & keep);
    }
    __syncwarp();
    slot = slot + 1 == STAGES ? 0 : slot + 1;
    stream.issue();
    if (++column == U || unit + 1 == share.end) {
      if (t < BATCH) {
        float* to = parts + ((tile + warp) * 16 + g) * BATCH + t;
        if (W == 16) {
          to[0] = fixed[0] + even[0];
          to[8 * BATCH] = fixed[2] + even[2];
        } else {
          to[0] = total[0] + fixed[0] + fixed[1];
          to[8 * BATCH] = total[1] + fixed[2] + fixed[3];
        }
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) fixed[i] = even[i] = 0.f;
      total[0] = total[1] = 0.f;
      column = 0;
      ++tile;
    }
  }
  __syncthreads();
}

// The product of one row: the sum of what the warps that met its tile left.
template <int KIND>
__device__ __forceinline__ float row_sum(const Share* shares, const float* parts, int tile, int row, int b) {
  constexpr int U = UNITS(KIND);
  float sum = 0.f;
#pragma unroll
  for (int w = 0; w < WARPS; ++w) {
    const int begin = shares[KIND * WARPS + w].begin, end = shares[KIND * WARPS + w].end;
    if (begin < end && begin < (tile + 1) * U && end > tile * U) sum += parts[((tile + w) * 16 + row) * BATCH + b];
  }
  return sum;
}
}  // namespace corelm
