// Body of the kernel decode_attention: one key/value head of one row, or a part of its keys. decode_attention.cuh comes
// before it.
using namespace corelm_decode;
const int head = blockIdx.x, row = head / cache_k_shape[1], kv = head % cache_k_shape[1];
const auto* q = queries + row * queries_strides[0] + kv * GROUP * queries_strides[1];
attend({q, queries_strides[1]}, new_key + row * new_key_strides[0] + kv * new_key_strides[1],
       new_value + row * new_value_strides[0] + kv * new_value_strides[1],
       {cache_k + row * cache_k_strides[0] + kv * cache_k_strides[1], cache_k_strides[2]},
       {cache_v + row * cache_v_strides[0] + kv * cache_v_strides[1], cache_v_strides[2]}, bounds + row * 3,
       PARTS ? out + (head * GROUP * gridDim.y + blockIdx.y) * (HEAD_DIM + 2) : out + head * GROUP * HEAD_DIM,
       PARTS ? int(blockIdx.y) : 0, PARTS ? int(gridDim.y) : 1);
