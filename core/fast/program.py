"""CUDA text: the whole step: which product follows which, what each one's rows become, and where the grid waits.

Five waits a layer: after the projections of queries, keys and values; after attention; after its output projection;
after gate and up; after down.
"""

SOURCE = r"""
struct Work {  // what blocks leave for each other, in device memory
  u32* counters;
  float *stream, *qkv, *partial;
  __nv_bfloat16 *attended, *activated;
};

__device__ __forceinline__ Work work_at(u8* memory) {
  Work work;
  work.counters = reinterpret_cast<u32*>(memory);
  work.stream = reinterpret_cast<float*>(memory + WORK_STREAM);
  work.qkv = reinterpret_cast<float*>(memory + WORK_QKV);
  work.partial = reinterpret_cast<float*>(memory + WORK_PARTIAL);
  work.attended = reinterpret_cast<__nv_bfloat16*>(memory + WORK_ATTENDED);
  work.activated = reinterpret_cast<__nv_bfloat16*>(memory + WORK_ACTIVATED);
  return work;
}
"""

STEP = r"""
__device__ __forceinline__ void embedding_octet(const u8* const* table, u32 token, int octet, float (&value)[8]) {
  const u8* const* at = table + EMBEDDING_FIELD;
  if (EMBEDDING_BITS == 16) {
    const uint4 v = *(reinterpret_cast<const uint4*>(at[0]) + static_cast<u64>(token) * (HIDDEN / 8) + octet);
#pragma unroll
    for (int i = 0; i < 8; ++i) value[i] = i & 1 ? high(component(v, i >> 1)) : low(component(v, i >> 1));
    return;
  }
  const u64 group = static_cast<u64>(token) * (HIDDEN / 64) + (octet >> 3);
  const float scale = __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(at[1])[group]);
  const float bias = __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(at[2])[group]);
  const u32* words = reinterpret_cast<const u32*>(at[0]) +
                     (static_cast<u64>(token) * (HIDDEN / 8) + octet) * (EMBEDDING_BITS / 4);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const u32 word = words[i * EMBEDDING_BITS / 32];
    const u32 q = (word >> (i * EMBEDDING_BITS % 32)) & ((1u << (EMBEDDING_BITS % 32)) - 1u);
    value[i] = __bfloat162float(__float2bfloat16_rn(scale * static_cast<float>(q) + bias));
  }
}

// The experts of largest score, and the softmax over these alone, in every block alike; scores are rounded to bfloat16,
// as the router's own product gives them.
template <int PASSES, int OCTETS>
__device__ __forceinline__ void choose_experts(const float (&value)[PASSES][8], float unscale, const u8* router, float* reduce, int* chosen) {
  constexpr int COUNT = EXPERTS > 0 ? EXPERTS : 1;
  float* scores = reduce + 2 * WARPS;  // [WARPS][EXPERTS]
  float score[COUNT];
#pragma unroll
  for (int e = 0; e < COUNT; ++e) score[e] = 0.f;
#pragma unroll
  for (int pass = 0; pass < PASSES; ++pass) {
    const int octet = pass * THREADS + threadIdx.x;
    if (octet < OCTETS) {
#pragma unroll
      for (int e = 0; e < COUNT; ++e) {
        const uint4 w = *(reinterpret_cast<const uint4*>(router) + e * OCTETS + octet);
#pragma unroll
        for (int i = 0; i < 8; ++i)
          score[e] += value[pass][i] * (i & 1 ? high(component(w, i >> 1)) : low(component(w, i >> 1)));
      }
    }
  }
#pragma unroll
  for (int e = 0; e < COUNT; ++e) {
    score[e] = warp_sum(score[e]);
    if ((threadIdx.x & 31) == 0) scores[(threadIdx.x >> 5) * COUNT + e] = score[e];
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int e = 0; e < COUNT; ++e) {
      float sum = 0.f;
      for (int w = 0; w < WARPS; ++w) sum += scores[w * COUNT + e];
      scores[e] = __bfloat162float(__float2bfloat16_rn(sum * unscale));
    }
    float* shares = reinterpret_cast<float*>(chosen + 16);
    float all = 0.f, largest = 0.f;
    for (int i = 0; i < CHOSEN; ++i) {
      int best = 0;
      for (int e = 1; e < COUNT; ++e)
        if (scores[e] > scores[best]) best = e;
      if (i == 0) largest = scores[best];
      chosen[i] = best;
      shares[i] = expf(scores[best] - largest);
      all += shares[i];
      scores[best] = -INFINITY;
    }
    for (int i = 0; i < CHOSEN; ++i) shares[i] /= all;
  }
}

// The residual stream, normed (Zhang and Sennrich, 2019), as the input of product KIND; the first layer's is looked up.
template <int KIND>
__device__ __forceinline__ void stage_normed(bool lookup, const u8* const* table, const u32* token, const float* stream,
                                             const u8* norm, float epsilon, u8* x, u16* sums, float* reduce,
                                             float* unscale, const u8* router = nullptr, int* chosen = nullptr) {
  constexpr int OCTETS = HIDDEN / 8, PASSES = (OCTETS + THREADS - 1) / THREADS;
  const __nv_bfloat16* weight = reinterpret_cast<const __nv_bfloat16*>(norm);
  for (int b = 0; b < BATCH; ++b) {
    float value[PASSES][8], squares = 0.f, largest = 0.f;
    uint4 w[PASSES];
#pragma unroll
    for (int pass = 0; pass < PASSES; ++pass) {
      const int octet = min(pass * THREADS + static_cast<int>(threadIdx.x), OCTETS - 1);
      w[pass] = *(reinterpret_cast<const uint4*>(weight) + octet);
      if (lookup) {
        embedding_octet(table, token[b], octet, value[pass]);
      } else {
        const float4* from = reinterpret_cast<const float4*>(stream + b * HIDDEN + octet * 8);
        const float4 lower = __ldcg(from), upper = __ldcg(from + 1);
        value[pass][0] = lower.x, value[pass][1] = lower.y, value[pass][2] = lower.z, value[pass][3] = lower.w;
        value[pass][4] = upper.x, value[pass][5] = upper.y, value[pass][6] = upper.z, value[pass][7] = upper.w;
      }
    }
#pragma unroll
    for (int pass = 0; pass < PASSES; ++pass)
      if (pass * THREADS + static_cast<int>(threadIdx.x) < OCTETS)
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          squares += value[pass][i] * value[pass][i];
          value[pass][i] *= i & 1 ? high(component(w[pass], i >> 1)) : low(component(w[pass], i >> 1));
          largest = fmaxf(largest, fabsf(value[pass][i]));
        }
    squares = warp_sum(squares);
    largest = warp_max(largest);
    if ((threadIdx.x & 31) == 0) {
      reduce[threadIdx.x >> 5] = squares;
      reduce[WARPS + (threadIdx.x >> 5)] = largest;
    }
    __syncthreads();
    squares = largest = 0.f;
#pragma unroll
    for (int i = 0; i < WARPS; ++i) {
      squares += reduce[i];
      largest = fmaxf(largest, reduce[WARPS + i]);
    }
    const float norm_scale = rsqrtf(squares / HIDDEN + epsilon);
    const float scale = BITS(KIND) == 16 ? 1.f : input_scale(largest * norm_scale);
    if (threadIdx.x == 0) unscale[b] = 1.f / scale;
#pragma unroll
    for (int pass = 0; pass < PASSES; ++pass) {
      const int octet = pass * THREADS + threadIdx.x;
#pragma unroll
      for (int i = 0; i < 8; ++i)
        value[pass][i] = scale * __bfloat162float(__float2bfloat16_rn(value[pass][i] * norm_scale));
      put_octet<BITS(KIND)>(x, sums, HIDDEN, b, octet, value[pass], octet < OCTETS);
    }
    if constexpr (KIND == 2 && EXPERTS != 0) choose_experts<PASSES, OCTETS>(value, 1.f / scale, router, reduce, chosen);
    __syncthreads();
  }
}

template <int KIND, int FEATURES>
__device__ __forceinline__ void stage_plain(const __nv_bfloat16* from, u8* x, u16* sums, float* reduce, float* unscale) {
  constexpr int OCTETS = FEATURES / 8, PASSES = (OCTETS + THREADS - 1) / THREADS;
  for (int b = 0; b < BATCH; ++b) {
    uint4 v[PASSES];  // all loads before any use
#pragma unroll
    for (int pass = 0; pass < PASSES; ++pass)
      v[pass] = __ldcg(reinterpret_cast<const uint4*>(from + b * FEATURES) +
                       min(pass * THREADS + static_cast<int>(threadIdx.x), OCTETS - 1));
    float scale = 1.f;
    if constexpr (BITS(KIND) != 16) {
      u32 largest = 0;  // magnitudes of bfloat16 compare as integers
#pragma unroll
      for (int pass = 0; pass < PASSES; ++pass)
#pragma unroll
        for (int i = 0; i < 4; ++i) largest = __vmaxu2(largest, component(v[pass], i) & 0x7fff7fffu);
      const float mine = warp_max(fmaxf(low(largest), high(largest)));
      if ((threadIdx.x & 31) == 0) reduce[threadIdx.x >> 5] = mine;
      __syncthreads();
      float all = 0.f;
#pragma unroll
      for (int i = 0; i < WARPS; ++i) all = fmaxf(all, reduce[i]);
      scale = input_scale(all);
    }
    if (threadIdx.x == 0) unscale[b] = 1.f / scale;
#pragma unroll
    for (int pass = 0; pass < PASSES; ++pass) {
      const int octet = pass * THREADS + threadIdx.x;
      float value[8];
#pragma unroll
      for (int i = 0; i < 8; ++i)
        value[i] = scale * (i & 1 ? high(component(v[pass], i >> 1)) : low(component(v[pass], i >> 1)));
      put_octet<BITS(KIND)>(x, sums, FEATURES, b, octet, value, octet < OCTETS);
    }
    __syncthreads();
  }
}

// This block's rows of the residual stream are in its shared memory; others read them from device memory.
template <int KIND>
__device__ __forceinline__ void add_to_stream(const Share* shares, float* stream, float* mine, const float* unscale,
                                              const float* parts) {
  const int first = shares[KIND * WARPS].first, tiles = shares[KIND * WARPS].tiles;
  for (int i = threadIdx.x; i < tiles * 16 * BATCH; i += THREADS) {
    const int b = i % BATCH, row = i / BATCH;
    mine[i] += unscale[b] * row_sum<KIND>(shares, parts, row >> 4, row & 15, b);
    stream[b * HIDDEN + first * 16 + row] = mine[i];
  }
}

__device__ __forceinline__ void step(const u8* const* table, const u32* token, const int* state, u8* memory,
                                     const float* frequencies, __nv_bfloat16* logits, int* next_state, u8* smem) {
  const Work work = work_at(memory);
  u8* zeros = smem + SMEM_ZEROS;
  float* reduce = reinterpret_cast<float*>(smem + SMEM_REDUCE);
  u8* x = smem + SMEM_INPUT;
  u16* sums = reinterpret_cast<u16*>(smem + SMEM_SUMS);
  float* parts = reinterpret_cast<float*>(smem + SMEM_PARTS);
  float* unscale = reduce + REDUCE_FLOATS;
  float* mine = reinterpret_cast<float*>(smem + SMEM_MINE);
  float2* turns = reinterpret_cast<float2*>(smem + SMEM_TURNS);
  Share* shares = reinterpret_cast<Share*>(smem + SMEM_SHARES);
  int* chosen = reinterpret_cast<int*>(smem + SMEM_CHOSEN);
  const int tid = threadIdx.x, warp = tid >> 5;
  const u8* ring = smem + SMEM_RING + warp * STAGES * UNIT_BYTES;
  make_shares(shares);
  __syncthreads();
  Stream stream;
  u32 slot = 0, target = 0;
  stream.start(table, shares, chosen, smem_address(ring));
  for (int i = tid; i < 1024 / 16; i += THREADS) reinterpret_cast<uint4*>(zeros)[i] = make_uint4(0, 0, 0, 0);
  for (int i = tid; i < BATCH * HEAD_DIM / 2; i += THREADS)
    sincosf(static_cast<float>(state[i / (HEAD_DIM / 2)]) * frequencies[i % (HEAD_DIM / 2)], &turns[i].y, &turns[i].x);
  for (int i = tid; i < shares[WARPS].tiles * 16 * BATCH; i += THREADS) {
    float value[8];
    const int b = i % BATCH, row = shares[WARPS].first * 16 + i / BATCH;
    embedding_octet(table, token[b], row >> 3, value);
    float mine_now = value[0];
#pragma unroll
    for (int j = 1; j < 8; ++j) mine_now = (row & 7) == j ? value[j] : mine_now;
    mine[i] = mine_now;
  }
#pragma unroll 1
  for (int layer = 0; layer < LAYERS; ++layer) {
    const u8* const* fields = table + layer * FIELDS;
    stage_normed<0>(layer == 0, table, token, work.stream, fields[0], ATTENTION_EPSILON, x, sums, reduce, unscale);
    prefetch_keys(layer, table, state);
    product<0>(stream, slot, ring, x, sums, zeros, parts);
    for (int i = tid; i < shares[0].tiles * 16 * BATCH; i += THREADS) {
      const int b = i % BATCH, row = i / BATCH;
      work.qkv[b * QKV_ROWS + shares[0].first * 16 + row] =
          unscale[b] * row_sum<0>(shares, parts, row >> 4, row & 15, b);
    }
    grid_sync(work.counters, target);
    attention(layer, table, state, turns, work, x);
    grid_sync(work.counters, target);
    stage_plain<1, QUERY_ROWS>(work.attended, x, sums, reduce, unscale);
    product<1>(stream, slot, ring, x, sums, zeros, parts);
    add_to_stream<1>(shares, work.stream, mine, unscale, parts);
    grid_sync(work.counters, target);
    stage_normed<2>(false, table, token, work.stream, fields[1], FEED_FORWARD_EPSILON, x, sums, reduce, unscale,
                    fields[16], chosen);
    if (EXPERTS != 0) stream.learn();
    product<2>(stream, slot, ring, x, sums, zeros, parts);
    const int first_pair = shares[2 * WARPS].first;
    for (int i = tid; i < shares[2 * WARPS].tiles * 8 * BATCH; i += THREADS) {
      const int b = i % BATCH, row = i / BATCH, tile = row >> 4 << 1;
      const float gate = unscale[b] * row_sum<2>(shares, parts, tile, row & 15, b);
      const float up = unscale[b] * row_sum<2>(shares, parts, tile + 1, row & 15, b);
      const float decay = expf(-fabsf(gate));
      float value = gate * ((gate < 0.f ? decay : 1.f) / (1.f + decay)) * up;
      if (EXPERTS != 0)
        value *= reinterpret_cast<const float*>(chosen + 16)[(first_pair + (row >> 4)) / (INTERMEDIATE / 16)];
      work.activated[b * ACTIVATED + first_pair * 16 + row] = __float2bfloat16_rn(value);
    }
    grid_sync(work.counters, target);
    stage_plain<3, ACTIVATED>(work.activated, x, sums, reduce, unscale);
    product<3>(stream, slot, ring, x, sums, zeros, parts);
    add_to_stream<3>(shares, work.stream, mine, unscale, parts);
    grid_sync(work.counters, target);
  }
  stage_normed<4>(false, table, token, work.stream, table[NORM_FIELD], HEAD_EPSILON, x, sums, reduce, unscale);
  product<4>(stream, slot, ring, x, sums, zeros, parts);
  for (int i = tid; i < shares[4 * WARPS].tiles * 16 * BATCH; i += THREADS) {
    const int b = i % BATCH, row = i / BATCH;
    logits[static_cast<u64>(b) * VOCABULARY + shares[4 * WARPS].first * 16 + row] =
        __float2bfloat16_rn(unscale[b] * row_sum<4>(shares, parts, row >> 4, row & 15, b));
  }
  if (blockIdx.x == 0)
    for (int i = tid; i < STATE_SIZE; i += THREADS) next_state[i] = i < BATCH ? state[i] + 1 : state[i];
  if (tid == 0) {  // The last block to leave puts the counter back for the next step, which starts after this one.
    __threadfence();
    if (atomicAdd(work.counters + 32, 1u) == gridDim.x - 1) {
      work.counters[0] = 0;
      work.counters[32] = 0;
      __threadfence();
    }
  }
}
"""
