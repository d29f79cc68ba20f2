// Body of the kernel decode_attention: one key/value head of one row, or a part of its keys. decode_attention.cuh comes
// before it.
const int head = blockIdx.x, row = head / cache_k_shape[1], kv = head % cache_k_shape[1];
const auto* q = queries + row * queries_strides[0] + kv * corelm_decode::GROUP * queries_strides[1];
corelm_decode::attend(
    {q, queries_strides[1]}, new_key + row * new_key_strides[0] + kv * new_key_strides[1],
    new_value + row * new_value_strides[0] + kv * new_value_strides[1],
    {cache_k + row * cache_k_strides[0] + kv * cache_k_strides[1], cache_k_strides[2]},
    {cache_v + row * cache_v_strides[0] + kv * cache_v_strides[1], cache_v_strides[2]}, bounds + row * 3,
    corelm_decode::PARTS
        ? out + (head * corelm_decode::GROUP * gridDim.y + blockIdx.y) * (corelm_decode::HEAD_DIM + 2)
        : out + head * corelm_decode::GROUP * corelm_decode::HEAD_DIM,
    corelm_decode::PARTS ? int(blockIdx.y) : 0, corelm_decode::PARTS ? int(gridDim.y) : 1);
