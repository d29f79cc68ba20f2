// The names of CUDA that an elementwise body uses, as plain C++: what runs is the body, one thread after the other.
#pragma once

#include <math.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "half_types.h"

using float16_t = Half;
using bfloat16_t = BFloat16;

struct dim3 {
    unsigned x, y, z;
};
static dim3 blockIdx, blockDim, threadIdx;

// MLX launches whole blocks: the last one runs past the grid, and the body must mind its bounds.
#define LAUNCH(count, threads, call)                                          \
    blockDim = {(threads), 1, 1};                                             \
    for (unsigned block = 0; block < ((count) + (threads)-1) / (threads); ++block) \
        for (unsigned thread = 0; thread < (threads); ++thread) {             \
            blockIdx = {block, 0, 0};                                         \
            threadIdx = {thread, 0, 0};                                       \
            call;                                                             \
        }
