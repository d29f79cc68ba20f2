
#include "mlx/backend/cuda/device/utils.cuh"

#include <cooperative_groups.h>

// a header
namespace mlx::core::cu {

namespace cg = cooperative_groups;

__global__ void custom_kernel_probe_bfloat16_t_3_t(
    const __nv_bfloat16* x,
    const __grid_constant__ Shape x_shape,
    const float* s,
    const __grid_constant__ Strides s_strides,
    const __grid_constant__ int s_ndim,
    __nv_bfloat16* out) {
  using T = __nv_bfloat16;
  constexpr int N = 3;
  constexpr bool F = true;

int i=threadIdx.x; out[i]=x[i]*T(2)+T(x_shape[0])+T(N)+T(s_ndim)+T(s_strides[0]);
}

} // namespace mlx::core::cu
