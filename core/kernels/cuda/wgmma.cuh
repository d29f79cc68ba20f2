// Hopper's products of four warps (wgmma), with a matrix in shared memory.
#pragma once

#include "primitives.cuh"

namespace corelm_cuda {
template <int COUNT>
struct Columns {};
__device__ __forceinline__ void fence_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void show_to_products() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// A matrix in shared memory: rows of 128 bytes, 16 bytes of each exchanged by the row (mode 1), groups of 8 rows
// together; `next` is how far the next 64 columns are, where a row is one of the inner dimension.
__device__ __forceinline__ u64 matrix(u32 at, u32 next) {
  return (at & 0x3ffff) >> 4 | static_cast<u64>(next >> 4) << 16 | static_cast<u64>(1024 >> 4) << 32 | 1ull << 62;
}

// The sums of a lane, which an instruction names one by one.
#define NUMBERS_32 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NUMBERS_64 \
  NUMBERS_32 ", " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define SUMS_8(d) \
  "+f"((d)[0]), "+f"((d)[1]), "+f"((d)[2]), "+f"((d)[3]), "+f"((d)[4]), "+f"((d)[5]), "+f"((d)[6]), "+f"((d)[7])
#define SUMS_32(d) SUMS_8(d), SUMS_8(d + 8), SUMS_8(d + 16), SUMS_8(d + 24)
#define SUMS_64(d) SUMS_32(d), SUMS_32(d + 32)

// Products of 64 rows with 64 or 128 columns over 16 of the inner dimension, and waiting for them.
__device__ __forceinline__ void multiply(float* d, u64 a, u64 b, int add, Columns<64>) {
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %34, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
               "{" NUMBERS_32 "}, %32, %33, p, 1, 1, 0, 0; }"
               : SUMS_32(d)
               : "l"(a), "l"(b), "r"(add));
}
__device__ __forceinline__ void multiply(float* d, const u32* a, u64 b, Columns<64>) {
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %37, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
               "{" NUMBERS_32 "}, {%32, %33, %34, %35}, %36, p, 1, 1, 1; }"
               : SUMS_32(d)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1));
}
template <int PENDING>
__device__ __forceinline__ void wait_for(float* d, Columns<64>) {
  asm volatile("wgmma.wait_group.sync.aligned %32;" : SUMS_32(d) : "n"(PENDING) : "memory");
}

__device__ __forceinline__ void multiply(float* d, u64 a, u64 b, int add, Columns<128>) {
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %66, 0; wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
               "{" NUMBERS_64 "}, %64, %65, p, 1, 1, 0, 0; }"
               : SUMS_64(d)
               : "l"(a), "l"(b), "r"(add));
}
__device__ __forceinline__ void multiply(float* d, const u32* a, u64 b, Columns<128>) {
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %69, 0; wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
               "{" NUMBERS_64 "}, {%64, %65, %66, %67}, %68, p, 1, 1, 1; }"
               : SUMS_64(d)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1));
}
template <int PENDING>
__device__ __forceinline__ void wait_for(float* d, Columns<128>) {
  asm volatile("wgmma.wait_group.sync.aligned %64;" : SUMS_64(d) : "n"(PENDING) : "memory");
}

#undef NUMBERS_32
#undef NUMBERS_64
#undef SUMS_8
#undef SUMS_32
#undef SUMS_64
}  // namespace corelm_cuda
