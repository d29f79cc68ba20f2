// Body of the kernel swiglu.
const unsigned hidden = static_cast<unsigned>(gate_up_shape[gate_up_ndim - 1]) / 2;
const unsigned packs = hidden / WIDTH;
unsigned total = packs;
for (int axis = 0; axis < gate_up_ndim - 1; ++axis) total *= gate_up_shape[axis];
const unsigned pack = blockIdx.x * blockDim.x + threadIdx.x;
if (pack >= total) return;
const T* gates_at = gate_up + static_cast<size_t>(pack / packs) * 2 * hidden + (pack % packs) * WIDTH;
const T* ups_at = gates_at + hidden;
const size_t to = static_cast<size_t>(pack) * WIDTH;
#include "swiglu_pack.cuh"
