// Attention of a tile of queries with mma.sync, which every tensor core since sm_80 knows.
//
// FlashAttention-2's arrangement (Dao, 2023): each warp has all keys to itself.
#pragma once

#include "prefill_attention.cuh"

namespace corelm_prefill {
__device__ __forceinline__ void attend(const Queries& queries, const Slots& keys, const Slots& values,
                                       const int* bounds, int first, Out* out, int heads, unsigned char* memory) {
  const int lane = threadIdx.x & 31, within = (threadIdx.x >> 5) * TILES * 16, mine = first + within;
  const u32 asked = smem_address(memory), stages = asked + ASKED_BYTES;
  const Sight sight(bounds, queries.slot(first), queries.slot(first + ROWS - 1));
  const auto load = [&](int i) {
    if (i < sight.tiles) {
      const u32 to = stages + i % 2 * 2 * TILE_BYTES;
      keys.load(to, sight.at(i));
      values.load(to + TILE_BYTES, sight.at(i));
    }
    copy_commit();
  };
  queries.load(memory, first);
  load(0);

  // Eight lanes point to the rows of a matrix; 16 rows by 16 columns are four: keys side by side, others above.
  const int swizzle = lane & 7;
  const u32 asked_row = asked + (within + (lane & 15)) * 128;
  const u32 key_row = ((lane >> 4) * 8 + swizzle) * 128, value_row = TILE_BYTES + (lane & 15) * 128;
  const auto column = [&](int piece) { return ((piece ^ swizzle) & 7) * 16; };

  float o[TILES][FEATURE_TILES][4];
#pragma unroll
  for (int n = 0; n < TILES * FEATURE_TILES * 4; ++n) (&o[0][0][0])[n] = 0.f;
  Softmax softmax;
#pragma unroll 1
  for (int i = 0; i < sight.tiles; ++i) {
    copy_wait<0>();
    __syncthreads();
    load(i + 1);
    const u32 stage = stages + i % 2 * 2 * TILE_BYTES;
    float s[TILES][KEY_TILES][4];
#pragma unroll
    for (int n = 0; n < TILES * KEY_TILES * 4; ++n) (&s[0][0][0])[n] = 0.f;
#pragma unroll
    for (int k = 0; k < HEAD_DIM / 16; ++k) {
      u32 q[TILES][4];
#pragma unroll
      for (int m = 0; m < TILES; ++m)
        read_matrices(q[m], asked_row + k / 4 * ROWS * 128 + m * 16 * 128 + column(k * 2 + (lane >> 4)));
#pragma unroll
      for (int n = 0; n < KEY_TILES; n += 2) {
        u32 b[4];
        read_matrices(b, stage + key_row + k / 4 * KEYS * 128 + n * 8 * 128 + column(k * 2 + (lane >> 3 & 1)));
#pragma unroll
        for (int m = 0; m < TILES; ++m) {
          mma(s[m][n], q[m][0], q[m][1], q[m][2], q[m][3], b[0], b[1]);
          mma(s[m][n + 1], q[m][0], q[m][1], q[m][2], q[m][3], b[2], b[3]);
        }
      }
    }
    softmax.hide(s, sight, queries, mine, sight.at(i));
    if (softmax.weigh(s)) softmax.fade(o);
#pragma unroll
    for (int k = 0; k < KEYS / 16; ++k) {
      u32 p[TILES][4];
#pragma unroll
      for (int m = 0; m < TILES; ++m)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float(&from)[4] = s[m][2 * k + (j >> 1)];
          p[m][j] = pack(from[j % 2 * 2], from[j % 2 * 2 + 1]);
        }
#pragma unroll
      for (int n = 0; n < FEATURE_TILES; n += 2) {
        u32 b[4];
        read_transposed(b, stage + value_row + n / 8 * KEYS * 128 + k * 16 * 128 + column(n + (lane >> 4)));
#pragma unroll
        for (int m = 0; m < TILES; ++m) {
          mma(o[m][n], p[m][0], p[m][1], p[m][2], p[m][3], b[0], b[1]);
          mma(o[m][n + 1], p[m][0], p[m][1], p[m][2], p[m][3], b[2], b[3]);
        }
      }
    }
  }
  copy_wait<0>();
  softmax.store(o, queries, mine, out, heads);
}
}  // namespace corelm_prefill
