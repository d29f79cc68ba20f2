// The names of Metal that an elementwise body uses, as plain C++: what runs is the body, one thread after the other.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "half_types.h"

using uint = unsigned int;
using half = Half;
using float16_t = Half;
using bfloat16_t = BFloat16;

struct uint3 {
    uint x, y, z;
};

namespace metal {
template <typename T>
T abs(T x) {
    return std::fabs(x);
}
namespace precise {
inline float exp(float x) { return std::exp(x); }
}  // namespace precise
}  // namespace metal

#define LAUNCH(count, threads, call)                                          \
    for (uint thread = 0; thread < (count); ++thread) {                       \
        const uint3 thread_position_in_grid{thread, 0, 0};                    \
        (void)(threads);                                                      \
        call;                                                                 \
    }
