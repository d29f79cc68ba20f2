// Body of the kernel prefill_attention: a tile of queries of one row. prefill_attention_mma.cuh or
// prefill_attention_wgmma.cuh comes before it.
extern __shared__ __align__(1024) unsigned char memory[];
using namespace corelm_prefill;
const int heads = queries_shape[1], seq = queries_shape[2], kv_heads = cache_k_shape[1], slots = cache_k_shape[2];
// Blocks that read the same slots are neighbours, those with most to read first.
const int group = heads / kv_heads, tiles = (seq * group + ROWS - 1) / ROWS;
const int tile = tiles - 1 - blockIdx.x % tiles, head = blockIdx.x / tiles;
const int kv = head % kv_heads, row = head / kv_heads;
const int* seen = bounds + row * 3;
attend({queries + row * queries_strides[0] + kv * group * queries_strides[1], queries_strides[1], queries_strides[2],
        queries_strides[3], group, seq, seen[2]},
       {cache_k + row * cache_k_strides[0] + kv * cache_k_strides[1], cache_k_strides[2], slots},
       {cache_v + row * cache_v_strides[0] + kv * cache_v_strides[1], cache_v_strides[2], slots}, seen, tile * ROWS,
       out + (static_cast<long long>(row) * seq * heads + kv * group) * gridDim.y * FEATURES, heads, memory);
