// Body of the kernel swiglu_pair.
const size_t to = static_cast<size_t>(thread_position_in_grid.x) * WIDTH;
#define GATE gate[to + i]
#define UP up[to + i]
#include "swiglu_pack.metal"
