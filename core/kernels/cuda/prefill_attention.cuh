// What a tile of queries sees of a buffer of keys, how both are read, and the softmax: for sources that multiply.
//
// The layout is that of tensor cores: a lane holds columns 2 t and 2 t + 1 of rows g and g + 8 of each tile of 16 rows and
// 8 columns. Python declares in this namespace: HEAD_DIM, WARPS, TILES, KEYS, SCORE_SCALE, NOTHING, PARTS.
#pragma once

#include "primitives.cuh"

namespace corelm_prefill {
using namespace corelm_cuda;

template <bool IN_PARTS>
struct Result {
  typedef __nv_bfloat16 Type;
};
template <>
struct Result<true> {
  typedef float Type;
};
typedef Result<PARTS>::Type Out;
constexpr int THREADS = WARPS * 32, ROWS = WARPS * TILES * 16;
constexpr int PIECES = HEAD_DIM / 8, STEP = THREADS / PIECES;  // 16 bytes each; rows that a block copies at a time
constexpr int FEATURE_TILES = HEAD_DIM / 8, KEY_TILES = KEYS / 8;
constexpr int ASKED_BYTES = ROWS * HEAD_DIM * 2, TILE_BYTES = KEYS * HEAD_DIM * 2;
constexpr int FEATURES = PARTS ? HEAD_DIM + 2 : HEAD_DIM;  // of a part: and the scale and the sum of its weights
// Weights stay below 2^SLACK: what they are scaled by changes only when a maximum has grown by more: soon rarely.
constexpr float SLACK = 8.f;
static_assert(STEP % 8 == 0 && KEYS % STEP == 0 && ROWS % STEP == 0, "threads copy whole rows");

// Where 16 bytes of a row lie in shared memory: 64 features together, and eight rows of a column in different banks.
template <int COUNT>
__device__ __forceinline__ u32 place(int row, int piece) {
  return (piece >> 3) * COUNT * 128 + row * 128 + ((piece ^ row) & 7) * 16;
}

struct Queries {  // that share a key/value head
  const __nv_bfloat16* data;
  long long head, position, feature;  // strides
  int group, seq, start;

  // Rows of tiles are the heads of one query after another, so that a tile reads its keys once for all of them.
  __device__ __forceinline__ int query(int row) const { return min(row / group, seq - 1); }
  __device__ __forceinline__ int slot(int row) const { return start + query(row); }
  __device__ __forceinline__ void load(unsigned char* to, int first) const {
    const int piece = threadIdx.x % PIECES;
    const bool wide = feature == 1 && ((reinterpret_cast<u64>(data) | (head | position) * 2) & 15) == 0;
    for (int row = threadIdx.x / PIECES; row < ROWS; row += STEP) {
      const int at = first + row;
      const __nv_bfloat16* from = data + query(at) * position + at % group * head + piece * 8 * feature;
      unsigned char* mine = to + place<ROWS>(row, piece);
      if (wide) {
        copy16(smem_address(mine), from);
      } else {  // another's view, which may begin anywhere
        for (int i = 0; i < 8; ++i) reinterpret_cast<__nv_bfloat16*>(mine)[i] = from[i * feature];
      }
    }
  }
};

struct Slots {  // of one head of a buffer
  const __nv_bfloat16* data;
  long long stride;
  int count;

  __device__ __forceinline__ void load(u32 to, int at) const {
    const int piece = threadIdx.x % PIECES, row = threadIdx.x / PIECES;
#pragma unroll
    for (int i = 0; i < KEYS; i += STEP)  // what would lie behind the buffer is hidden anyway
      copy16(to + place<KEYS>(row, piece) + i * 128, data + min(at + row + i, count - 1) * stride + piece * 8);
  }
};

// A part of the tiles that a block's queries see, those at slots from low to high: some in front, and some near them.
struct Sight {
  int kept, window, fronts, near, first, tiles;

  __device__ __forceinline__ Sight(const int* bounds, int low, int high) : kept(bounds[0]), window(bounds[1]) {
    fronts = (min(kept, high + 1) + KEYS - 1) / KEYS;
    near = max(fronts, max(0, low - window + 1) / KEYS);
    const int all = fronts + high / KEYS + 1 - near, parts = gridDim.y, each = (all + parts - 1) / parts;
    first = blockIdx.y * each;
    tiles = max(0, min(each, all - first));
  }
  __device__ __forceinline__ int at(int i) const {
    const int tile = first + i;
    return (tile < fronts ? tile : near + tile - fronts) * KEYS;
  }
  __device__ __forceinline__ bool shows(int query, int slot) const {
    return slot <= query && (slot > query - window || slot < kept);
  }
};

struct Softmax {
  float maximum[TILES][2], sum[TILES][2], faded[TILES][2];

  __device__ __forceinline__ Softmax() {
#pragma unroll
    for (int i = 0; i < TILES * 2; ++i) (&maximum[0][0])[i] = NOTHING, (&sum[0][0])[i] = 0.f;
  }

  // Hides what a warp's rows do not see of a tile.
  static __device__ __forceinline__ void hide(float (&s)[TILES][KEY_TILES][4], const Sight& sight,
                                              const Queries& queries, int row, int at) {
    const int low = queries.slot(row), high = queries.slot(row + TILES * 16 - 1);
    if (at + KEYS - 1 <= low && (at > high - sight.window || at + KEYS <= sight.kept)) return;
    const int g = threadIdx.x >> 2 & 7, t = threadIdx.x & 3;
#pragma unroll
    for (int m = 0; m < TILES; ++m)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int query = queries.slot(row + m * 16 + h * 8 + g);
#pragma unroll
        for (int n = 0; n < KEY_TILES; ++n)
#pragma unroll
          for (int j = 0; j < 2; ++j)
            if (!sight.shows(query, at + n * 8 + t * 2 + j)) s[m][n][h * 2 + j] = -INFINITY;
      }
  }

  // Scores become weights; true where what was summed before is to be faded.
  __device__ __forceinline__ bool weigh(float (&s)[TILES][KEY_TILES][4]) {
    float best[TILES][2];
    bool grown = false;
#pragma unroll
    for (int m = 0; m < TILES; ++m)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float x = -INFINITY;
#pragma unroll
        for (int n = 0; n < KEY_TILES; ++n) x = fmaxf(x, fmaxf(s[m][n][h * 2], s[m][n][h * 2 + 1]));
        best[m][h] = x * SCORE_SCALE;
        grown |= best[m][h] > maximum[m][h] + SLACK;
      }
    grown = __any_sync(0xffffffffu, grown);
    if (grown) {
#pragma unroll
      for (int m = 0; m < TILES; ++m)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const float x = quad_max(fmaxf(best[m][h], maximum[m][h]));
          faded[m][h] = power2(maximum[m][h] - x);
          sum[m][h] *= faded[m][h];
          maximum[m][h] = x;
        }
    }
#pragma unroll
    for (int m = 0; m < TILES; ++m)
#pragma unroll
      for (int n = 0; n < KEY_TILES; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          s[m][n][i] = power2(fmaf(s[m][n][i], SCORE_SCALE, -maximum[m][i >> 1]));
          sum[m][i >> 1] += s[m][n][i];
        }
    return grown;
  }

  __device__ __forceinline__ void fade(float (&o)[TILES][FEATURE_TILES][4]) const {
#pragma unroll
    for (int m = 0; m < TILES; ++m)
#pragma unroll
      for (int n = 0; n < FEATURE_TILES; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) o[m][n][i] *= faded[m][i >> 1];
  }

  // Writes a warp's rows. Of a part: values that are weighted already, in a scale that is the sum of all weights.
  __device__ __forceinline__ void store(const float (&o)[TILES][FEATURE_TILES][4], const Queries& queries, int row,
                                        Out* out, int heads) const {
    const int g = threadIdx.x >> 2 & 7, t = threadIdx.x & 3;
#pragma unroll
    for (int m = 0; m < TILES; ++m)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float total = quad_sum(sum[m][h]);
        const int mine = row + m * 16 + h * 8 + g, query = mine / queries.group;
        if (query >= queries.seq) continue;
        const long long place = static_cast<long long>(query) * heads + mine % queries.group;
        Out* to = out + (place * gridDim.y + blockIdx.y) * FEATURES;
        const bool any = total > 0.f;
        const float weight = any ? 1.f / total : 0.f;
#pragma unroll
        for (int n = 0; n < FEATURE_TILES; ++n) {
          const float x = o[m][n][h * 2] * weight, y = o[m][n][h * 2 + 1] * weight;
          if constexpr (PARTS) *reinterpret_cast<float2*>(to + n * 8 + t * 2) = make_float2(x, y);
          else *reinterpret_cast<u32*>(to + n * 8 + t * 2) = pack(x, y);
        }
        if constexpr (PARTS)
          if (t == 0)
            *reinterpret_cast<float2*>(to + HEAD_DIM) =
                make_float2(any ? maximum[m][h] + log2f(total) : NOTHING, any ? 1.f : 0.f);
      }
  }
};
}  // namespace corelm_prefill
