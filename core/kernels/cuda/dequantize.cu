// Body of the kernel dequantize: eight elements a thread.
size_t total = GROUP / 8;
for (int axis = 0; axis < scales_ndim; ++axis) total *= scales_shape[axis];
const size_t at = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
if (at >= total) return;
const float scale = static_cast<float>(scales[at / (GROUP / 8)]);
const float bias = static_cast<float>(biases[at / (GROUP / 8)]);
struct alignas(sizeof(T) * 8) Pack { T values[8]; };
Pack results;
for (int word = 0; word < BITS / 4; ++word) {
    const unsigned packed = weight[at * (BITS / 4) + word];
    for (int i = 0; i < 32 / BITS; ++i) {
        const float integer = static_cast<float>((packed >> (BITS * i)) & ((1u << BITS) - 1u));
        results.values[word * (32 / BITS) + i] = static_cast<T>(fmaf(scale, integer, bias));
    }
}
*reinterpret_cast<Pack*>(out + at * 8) = results;  // an output starts its own buffer, and is aligned
