"""CUDA text: the stream of weights, from device memory into a ring in shared memory, ahead of all arithmetic.

Which weights a warp multiplies by, and in which order, depends on no activation. So each warp keeps a ring of units in
flight, across products and across the waits between them, and memory never idles. A unit is 256 bytes of each of 16
rows, with their scales and biases; each lane copies what it will itself consume, and only scales are shared by a warp.
"""

SOURCE = r"""
// The part of one product that a block computes: whole tiles of 16 rows. Where rows are paired (gate and up), tiles
// 2i and 2i + 1 are the same rows of both halves.
struct Share {
  int first, tiles, begin, end;  // first tile, in pairs where paired; this warp's units among the tiles'
};

__device__ __forceinline__ Share share_of(int kind, int warp) {
  const int quanta = TILES(kind) >> PAIRED(kind);
  const int first = quanta * static_cast<int>(blockIdx.x) / static_cast<int>(gridDim.x);
  const int last = quanta * (static_cast<int>(blockIdx.x) + 1) / static_cast<int>(gridDim.x);
  const int tiles = (last - first) << PAIRED(kind);
  const int units = tiles * UNITS(kind);
  return {first, tiles, units * warp / WARPS, units * (warp + 1) / WARPS};
}

__device__ __forceinline__ int row_of(int kind, int first, int tile) {
  return PAIRED(kind) ? (first + (tile >> 1)) * 16 + (tile & 1) * (TILES(kind) * 8) : (first + tile) * 16;
}

struct Stream {
  const u8* const* table;
  const u8* weights;  // of row g of the next unit, and this lane's 16 bytes of each 64
  const u8* scales;
  int phase, left, column, odd, units, row_bytes, scale_bytes, width, advance, other_advance;
  u32 ring, slot;

  __device__ __forceinline__ void start(const u8* const* pointers, u32 my_ring) {
    table = pointers;
    ring = my_ring;
    slot = 0;
    phase = -1;
    left = 0;
    for (int i = 0; i < STAGES; ++i) issue();
  }

  __device__ __forceinline__ void open() {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int kind = phase < 4 * LAYERS ? phase & 3 : 4;
    const u8* const* at = table + (kind == 4 ? HEAD_FIELD : (phase >> 2) * FIELDS + 4 + 3 * kind);
    const Share share = share_of(kind, warp);
    left = share.end - share.begin;
    if (left == 0) return;
    units = UNITS(kind);
    const int tile = share.begin / units;
    column = share.begin - tile * units;
    odd = tile & 1;
    width = BITS(kind);
    row_bytes = units * 256;
    scale_bytes = width == 16 ? 0 : units * (width == 4 ? 16 : 8);
    advance = PAIRED(kind) ? TILES(kind) * 8 : 16;
    other_advance = PAIRED(kind) ? 16 - TILES(kind) * 8 : 16;
    const u64 row = row_of(kind, share.first, tile);
    weights = at[0] + (row + (lane >> 2)) * row_bytes + column * 256 + (lane & 3) * 16;
    if (width != 16)
      scales = at[lane < 16 ? 1 : 2] + (row + (lane & 15)) * scale_bytes + column * (width == 4 ? 16 : 8);
  }

  // Copies the next unit into the ring; always ends one group of copies, so that groups count units.
  __device__ __forceinline__ void issue() {
    while (left == 0 && phase < 4 * LAYERS) {
      ++phase;
      open();
    }
    if (left != 0) {
      const int lane = threadIdx.x & 31;
      const u32 to = ring + slot * UNIT_BYTES + lane * 16;
      const u8* lower = weights + 8 * row_bytes;
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        copy16(to + c * 1024, weights + c * 64);
        copy16(to + c * 1024 + 512, lower + c * 64);
      }
      if (width == 4) copy16(to + 4096, scales);
      if (width == 8) copy8(to - lane * 8 + 4096, scales);
      --left;
      weights += 256;
      scales += width == 4 ? 16 : 8;
      if (++column == units) {
        const long long rows = odd ? other_advance : advance;
        column = 0;
        odd ^= 1;
        weights += (rows - 1) * row_bytes;
        scales += (rows - 1) * scale_bytes;
      }
      slot = slot + 1 == STAGES ? 0 : slot + 1;
    }
    copy_commit();
  }
};
"""
