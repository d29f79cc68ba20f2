// Body of the kernel swiglu_pair.
size_t total = 1;
for (int axis = 0; axis < gate_ndim; ++axis) total *= gate_shape[axis];
const size_t to = (static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x) * WIDTH;
if (to >= total) return;
const T* gates_at = gate + to;
const T* ups_at = up + to;
#include "swiglu_pack.cuh"
