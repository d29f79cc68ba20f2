// Attention of a tile of queries with wgmma, Hopper's products of four warps, keys in shared memory.
//
// FlashAttention-3's arrangement within a warp group (Shah et al., 2024): scores of the next keys, and the sum over these
// values, are under way while the softmax is taken.
#pragma once

#include "prefill_attention.cuh"
#include "wgmma.cuh"

namespace corelm_prefill {
__device__ __forceinline__ void attend(const Queries& queries, const Slots& keys, const Slots& values,
                                       const int* bounds, int first, Out* out, int heads, unsigned char* memory) {
  const int within = (threadIdx.x >> 5) * 16, mine = first + within;
  const u32 asked = smem_address(memory), held = asked + ASKED_BYTES;  // two tiles of keys, then two of values
  const Sight sight(bounds, queries.slot(first), queries.slot(first + ROWS - 1));
  const auto load_keys = [&](int i) {
    if (i < sight.tiles) keys.load(held + i % 2 * TILE_BYTES, sight.at(i));
  };
  const auto load_values = [&](int i) {
    if (i < sight.tiles) values.load(held + (2 + i % 2) * TILE_BYTES, sight.at(i));
  };
  queries.load(memory, first);
  load_keys(0);
  copy_commit();
  load_values(0);
  load_keys(1);
  copy_commit();

  float o[1][FEATURE_TILES][4], s[1][KEY_TILES][4];
  u32 p[KEYS / 16][4];
#pragma unroll
  for (int n = 0; n < FEATURE_TILES * 4; ++n) (&o[0][0][0])[n] = 0.f;
  const u32 rows = asked + (within & ~63) * 128;
  const auto score = [&](int i) {
    const u32 tile = held + i % 2 * TILE_BYTES;
#pragma unroll
    for (int k = 0; k < HEAD_DIM / 16; ++k)
      multiply(&s[0][0][0], matrix(rows + k / 4 * ROWS * 128 + k % 4 * 32, 16),
               matrix(tile + k / 4 * KEYS * 128 + k % 4 * 32, 16), k > 0, Columns<KEYS>());
    commit_products();
  };
  const auto sum_values = [&](int i) {
    const u32 tile = held + (2 + i % 2) * TILE_BYTES;
#pragma unroll
    for (int k = 0; k < KEYS / 16; ++k)
      multiply(&o[0][0][0], p[k], matrix(tile + k * 16 * 128, KEYS * 128), Columns<HEAD_DIM>());
    commit_products();
  };
  const auto round = [&] {
#pragma unroll
    for (int k = 0; k < KEYS / 16; ++k)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float(&from)[4] = s[0][2 * k + (j >> 1)];
        p[k][j] = pack(from[j % 2 * 2], from[j % 2 * 2 + 1]);
      }
  };
  Softmax softmax;
  copy_wait<1>();
  show_to_products();
  __syncthreads();
  if (sight.tiles > 0) {
    fence_products();
    score(0);
    wait_for<0>(&s[0][0][0], Columns<KEYS>());
    softmax.hide(s, sight, queries, mine, sight.at(0));
    softmax.weigh(s);
    round();
#pragma unroll 1
    for (int i = 0; i + 1 < sight.tiles; ++i) {
      copy_wait<0>();
      show_to_products();
      __syncthreads();
      load_values(i + 1);
      load_keys(i + 2);
      copy_commit();
      fence_products();
      score(i + 1);
      sum_values(i);
      wait_for<1>(&s[0][0][0], Columns<KEYS>());
      softmax.hide(s, sight, queries, mine, sight.at(i + 1));
      const bool grown = softmax.weigh(s);
      wait_for<0>(&o[0][0][0], Columns<HEAD_DIM>());
      if (grown) softmax.fade(o);
      round();
    }
    copy_wait<0>();
    show_to_products();
    __syncthreads();
    fence_products();
    sum_values(sight.tiles - 1);
    wait_for<0>(&o[0][0][0], Columns<HEAD_DIM>());
  }
  copy_wait<0>();
  softmax.store(o, queries, mine, out, heads);
}
}  // namespace corelm_prefill
