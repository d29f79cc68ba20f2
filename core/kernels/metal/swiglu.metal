// Body of the kernel swiglu.
const uint hidden = static_cast<uint>(gate_up_shape[gate_up_ndim - 1]) / 2;
const uint packs = hidden / WIDTH;
const uint pack = thread_position_in_grid.x;
const size_t from = static_cast<size_t>(pack / packs) * 2 * hidden + (pack % packs) * WIDTH;
const size_t to = static_cast<size_t>(pack) * WIDTH;
#define GATE gate_up[from + i]
#define UP gate_up[from + hidden + i]
#include "swiglu_pack.metal"
