// The stream of weights, from device memory into a ring in shared memory, ahead of all arithmetic.
//
// Which weights a warp multiplies by, and in which order, depends on no activation. So each warp keeps a ring of units
// in flight, across products and across the waits between them, and memory never idles. A unit is 256 bytes of each of
// 16 rows, with their scales and biases; each lane copies what it will itself consume, and only scales are shared by a
// warp.
#pragma once

#include "primitives.cuh"

namespace corelm {
using namespace corelm_cuda;

// The part of one product that a block computes: whole tiles of 16 rows. Where rows are paired (gate and up), tiles
// 2i and 2i + 1 are the same rows of both halves.
struct Share {
  int first, tiles, begin, end;  // first tile, in pairs where paired; this warp's units among the tiles'
  int segment, column;           // where in the tiles, and in the row, this warp begins
};

__device__ __forceinline__ Share make_share(int kind, int warp) {
  const int quanta = TILES(kind) >> PAIRED(kind);
  const int first = quanta * static_cast<int>(blockIdx.x) / static_cast<int>(gridDim.x);
  const int last = quanta * (static_cast<int>(blockIdx.x) + 1) / static_cast<int>(gridDim.x);
  const int tiles = (last - first) << PAIRED(kind);
  const int units = tiles * UNITS(kind);
  const int begin = units * warp / WARPS, segment = begin / SEGMENT(kind);
  return {first, tiles, begin, units * (warp + 1) / WARPS, segment, begin - segment * SEGMENT(kind)};
}

// Divisions are slow: they are done once, into a table in shared memory.
__device__ __forceinline__ void make_shares(Share* shares) {
  for (int i = threadIdx.x; i < 5 * WARPS; i += THREADS) shares[i] = make_share(i / WARPS, i % WARPS);
}

// Rows of one tile, or with experts of one tile and expert: `segment` counts both, the experts of a tile in turn.
__device__ __forceinline__ int row_of(int kind, int first, int segment, const int* chosen) {
  if (kind == 2) {
    const int pair = first + (segment >> 1), half = (segment & 1) * INTERMEDIATE;
    if (EXPERTS == 0) return pair * 16 + half;
    const int expert = pair / (INTERMEDIATE / 16);
    return chosen[expert] * (2 * INTERMEDIATE) + (pair - expert * (INTERMEDIATE / 16)) * 16 + half;
  }
  if (kind == 3 && EXPERTS != 0)
    return chosen[segment % CHOSEN] * HIDDEN + (first + segment / CHOSEN) * 16;
  return (first + segment) * 16;
}

struct Stream {
  const u8* const* table;
  const Share* shares;
  const int* chosen;                               // experts of the layer at hand
  const u8 *weights, *scales;                      // this lane's bytes of the next unit
  const u8 *all_weights, *all_scales;              // and of row 0
  int phase, left, column, segment, first, units, row_bytes, scale_bytes, width, known;
  u32 ring, slot;

  __device__ __forceinline__ void start(const u8* const* pointers, const Share* all, const int* experts, u32 my_ring) {
    table = pointers;
    shares = all;
    chosen = experts;
    ring = my_ring;
    slot = 0;
    phase = -1;
    left = known = 0;
    fill();
  }

  __device__ __forceinline__ void fill() {
    for (int i = 0; i < STAGES; ++i) issue();
  }

  // The experts of one more layer are known: what waited for them goes ahead. The ring is empty then.
  __device__ __forceinline__ void learn() {
    ++known;
    fill();
  }

  __device__ __forceinline__ void open() {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int kind = phase < 4 * LAYERS ? phase & 3 : 4;
    const u8* const* at = table + (kind == 4 ? HEAD_FIELD : (phase >> 2) * FIELDS + 4 + 3 * kind);
    const Share share = shares[kind * WARPS + warp];
    left = share.end - share.begin;
    if (left == 0) return;
    units = SEGMENT(kind);
    first = share.first;
    segment = share.segment;
    column = share.column;
    width = BITS(kind);
    row_bytes = units * 256;
    scale_bytes = width == 16 ? 0 : units * (width == 4 ? 16 : 8);
    all_weights = at[0] + static_cast<u64>(lane >> 2) * row_bytes + (lane & 3) * 16;
    all_scales = width == 16 ? nullptr : at[lane < 16 ? 1 : 2] + (lane & 15) * scale_bytes;
    place(kind);
  }

  __device__ __forceinline__ void place(int kind) {
    const u64 row = row_of(kind, first, segment, chosen);
    weights = all_weights + row * row_bytes + column * 256;
    scales = all_scales + row * scale_bytes + column * (width == 4 ? 16 : 8);
  }

  // Copies the next unit into the ring; always ends one group of copies, so that groups count units.
  __device__ __forceinline__ void issue() {
    while (left == 0 && phase < 4 * LAYERS) {
      if (EXPERTS != 0 && ((phase + 1) & 3) == 2 && phase < 4 * LAYERS - 1 && (phase + 1) >> 2 >= known) break;
      ++phase;
      open();
    }
    if (left != 0) {
      const int lane = threadIdx.x & 31;
      const u32 to = ring + slot * UNIT_BYTES + lane * 16;
      const u8* lower = weights + 8 * row_bytes;
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        copy16_of_128(to + c * 1024, weights + c * 64);
        copy16_of_128(to + c * 1024 + 512, lower + c * 64);
      }
      if (width == 4) copy16_of_128(to + 4096, scales);
      if (width == 8) copy8(to - lane * 8 + 4096, scales);
      --left;
      weights += 256;
      scales += width == 4 ? 16 : 8;
      if (++column == units) {
        column = 0;
        ++segment;
        if (left != 0) place(phase < 4 * LAYERS ? phase & 3 : 4);
      }
      slot = slot + 1 == STAGES ? 0 : slot + 1;
    }
    copy_commit();
  }
};
}  // namespace corelm
