"""CUDA text: what a tile of queries sees of a buffer of keys, its softmax, and how parts of an attention are merged.

For sources that multiply. Knows the layout of tensor cores, where a lane holds columns ``2 t`` and ``2 t + 1`` of rows
``g`` and ``g + 8`` of each tile of 16 rows and 8 columns; the namespace that it is in and its constants come before it.
"""

HEADER = r"""
using namespace corelm_cuda;
constexpr int THREADS = WARPS * 32, ROWS = WARPS * TILES * 16;
constexpr int PIECES = HEAD_DIM / 8, STEP = THREADS / PIECES;  // 16 bytes each; rows that a block copies at a time
constexpr int FEATURE_TILES = HEAD_DIM / 8, KEY_TILES = KEYS / 8;
constexpr int ASKED_BYTES = ROWS * HEAD_DIM * 2, TILE_BYTES = KEYS * HEAD_DIM * 2;
constexpr int PART_FEATURES = HEAD_DIM + 4;  // and the logarithm (base 2) of their weight, until rows are aligned
// Weights stay below 2^SLACK: what they are scaled by changes only when a maximum has grown by more, which is soon rare.
constexpr float SLACK = 8.f, NOTHING = -1e30f;
static_assert(STEP % 8 == 0 && KEYS % STEP == 0 && ROWS % STEP == 0, "threads copy whole rows");

// Where 16 bytes of a row lie in shared memory: 64 features together, and eight rows of a column in different banks.
template <int COUNT>
__device__ __forceinline__ u32 place(int row, int piece) {
  return (piece >> 3) * COUNT * 128 + row * 128 + ((piece ^ row) & 7) * 16;
}

struct Queries {  // that share a key/value head
  const __nv_bfloat16* data;
  long long head, position;  // strides
  int group, seq, start;

  // Rows of tiles are the heads of one query after another, so that a tile reads its keys once for all of them.
  __device__ __forceinline__ int query(int row) const { return min(row / group, seq - 1); }
  __device__ __forceinline__ int slot(int row) const { return start + query(row); }
  __device__ __forceinline__ void load(u32 to, int first) const {
    const int piece = threadIdx.x % PIECES;
    for (int row = threadIdx.x / PIECES; row < ROWS; row += STEP) {
      const int at = first + row;
      copy16(to + place<ROWS>(row, piece), data + query(at) * position + at % group * head + piece * 8);
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

// The tiles that rows of queries see, between two bounds: some in front, and those near the queries.
struct Sight {
  int kept, window, front, fronts, near, tiles;

  __device__ __forceinline__ Sight(const int* bounds, int low, int high) : kept(bounds[0]), window(bounds[1]) {
    const int from = bounds[3], end = min(bounds[4], high + 1);
    front = from / KEYS;
    const int behind = max(front, (min(kept, end) + KEYS - 1) / KEYS);
    fronts = behind - front;
    near = max(behind, max(from, low - window + 1) / KEYS);
    tiles = fronts + max(0, (end + KEYS - 1) / KEYS - near);
  }
  __device__ __forceinline__ int at(int i) const { return (i < fronts ? front + i : near + i - fronts) * KEYS; }
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
  static __device__ __forceinline__ void hide(float (&s)[TILES][KEY_TILES][4], const Sight& sight, const Queries& queries,
                                              int row, int at) {
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
          float x = fmaxf(best[m][h], maximum[m][h]);
          x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
          x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
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

  // Writes a warp's rows: bfloat16, or (float) a part.
  template <typename Out>
  __device__ __forceinline__ void store(const float (&o)[TILES][FEATURE_TILES][4], const Queries& queries, int row,
                                        Out* out, int heads) const {
    constexpr bool PART = sizeof(Out) == 4;
    const int g = threadIdx.x >> 2 & 7, t = threadIdx.x & 3;
#pragma unroll
    for (int m = 0; m < TILES; ++m)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float total = sum[m][h];
        total += __shfl_xor_sync(0xffffffffu, total, 1);
        total += __shfl_xor_sync(0xffffffffu, total, 2);
        const int mine = row + m * 16 + h * 8 + g, query = mine / queries.group;
        if (query >= queries.seq) continue;
        const long long place = static_cast<long long>(query) * heads + mine % queries.group;
        Out* to = out + place * (PART ? PART_FEATURES : HEAD_DIM);
        const float weight = total > 0.f ? 1.f / total : 0.f;
#pragma unroll
        for (int n = 0; n < FEATURE_TILES; ++n) {
          const float x = o[m][n][h * 2] * weight, y = o[m][n][h * 2 + 1] * weight;
          if constexpr (PART) *reinterpret_cast<float2*>(to + n * 8 + t * 2) = make_float2(x, y);
          else *reinterpret_cast<u32*>(to + n * 8 + t * 2) = pack(x, y);
        }
        if constexpr (PART) to[HEAD_DIM + t] = total > 0.f ? maximum[m][h] + log2f(total) : -INFINITY;
      }
  }
};
"""

BODY = """
    extern __shared__ __align__(1024) unsigned char memory[];
    const int rows = queries_shape[0], heads = queries_shape[1], seq = queries_shape[2];
    const int kv_heads = cache_k_shape[1], slots = cache_k_shape[2], group = heads / kv_heads;
    // Blocks that read the same slots are neighbours, those with most to read first.
    const int tiles = (seq * group + SPACE::ROWS - 1) / SPACE::ROWS, tile = tiles - 1 - blockIdx.x % tiles;
    const int part = blockIdx.x / tiles % bounds_shape[0], head = blockIdx.x / tiles / bounds_shape[0];
    const int kv = head % kv_heads, row = head / kv_heads, place = part * rows + row;
    const int* seen = bounds + place * 5;
    SPACE::attend({queries + row * queries_strides[0] + kv * group * queries_strides[1], queries_strides[1],
                   queries_strides[2], group, seq, seen[2]},
                  {cache_k + row * cache_k_strides[0] + kv * cache_k_strides[1], cache_k_strides[2], slots},
                  {cache_v + row * cache_v_strides[0] + kv * cache_v_strides[1], cache_v_strides[2], slots}, seen,
                  tile * SPACE::ROWS, out + (static_cast<long long>(place) * seq * heads + kv * group) * SPACE::FEATURES,
                  heads, memory);
"""

MERGE = r"""
using namespace corelm_cuda;
constexpr int PART_FEATURES = HEAD_DIM + 4;
// Parts of an attention, one after another, to the whole: four features for each thread.
__device__ __forceinline__ void merge(const float* parts, int count, long long rows, __nv_bfloat16* out) {
  const long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x, row = i / (HEAD_DIM / 4);
  if (row >= rows) return;
  const float* from = parts + row * PART_FEATURES;
  const long long next = rows * PART_FEATURES;
  float best = -INFINITY, total = 0.f;
  for (int p = 0; p < count; ++p) best = fmaxf(best, from[p * next + HEAD_DIM]);
  const int feature = i % (HEAD_DIM / 4) * 4;
  float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
  for (int p = 0; p < count; ++p) {
    const float weight = power2(from[p * next + HEAD_DIM] - best);
    const float4 x = *reinterpret_cast<const float4*>(from + p * next + feature);
    total += weight;
    sum = make_float4(sum.x + weight * x.x, sum.y + weight * x.y, sum.z + weight * x.z, sum.w + weight * x.w);
  }
  const float scale = 1.f / total;
  *reinterpret_cast<uint2*>(out + row * HEAD_DIM + feature) =
      make_uint2(pack(sum.x * scale, sum.y * scale), pack(sum.z * scale, sum.w * scale));
}
"""

MERGE_BODY = """
    SPACE::merge(parts, parts_shape[0], static_cast<long long>(parts_shape[1]) * parts_shape[2] * parts_shape[3], out);
"""
