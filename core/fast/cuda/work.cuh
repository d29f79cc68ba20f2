// Where blocks leave numbers for each other, in device memory.
#pragma once

#include "primitives.cuh"

namespace corelm {
using namespace corelm_cuda;

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
}  // namespace corelm
