// What kernels need of MLX's header.
#include <mlx/backend/cuda/device/config.h>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

typedef signed char int8_t;
typedef short int16_t;
typedef int int32_t;
typedef long long int64_t;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#define NAN __int_as_float(0x7fffffff)
#endif

namespace mlx::core::cu {
template <typename T>
struct CoreAxes {
  T values[MAX_NDIM];
  __host__ __device__ T operator[](int axis) const { return values[axis]; }
};
using Shape = CoreAxes<int32_t>;
using Strides = CoreAxes<int64_t>;
}  // namespace mlx::core::cu
