"""CUDA text: the scores of 16 keys for the queries of a warp, their softmax so far, and what the warp leaves behind.

For sources that define ``mma_top``, HEAD_DIM, GROUP, CHUNKS and HALVES, and have read ``k`` and ``v`` for the tile at
``at``. Knows the layout of tensor cores; knows no cache.
"""

_TILE = r"""    float s[2][2] = {{0.f, 0.f}, {0.f, 0.f}};
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c)
#pragma unroll
      for (int a = 0; a < 2; ++a) {
        mma_top(s[a][0], s[a][1], q[c].x, q[c].y, k[a][c].x, k[a][c].y);
        mma_top(s[a][0], s[a][1], q[c].z, q[c].w, k[a][c].z, k[a][c].w);
      }
    float p[4], best = maximum;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int key = at + (i >> 1) * 8 + t * 2 + (i & 1);
      p[i] = key < end ? s[i >> 1][i & 1] * SCORE_SCALE : -INFINITY;
      best = fmaxf(best, p[i]);
    }
    best = fmaxf(best, __shfl_xor_sync(0xffffffffu, best, 1));
    best = fmaxf(best, __shfl_xor_sync(0xffffffffu, best, 2));
    const float faded = FADED;
    maximum = best;
    sum *= faded;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      p[i] = exp2f(p[i] - best);
      sum += p[i];
    }
    const u32 p0 = pack(p[0], p[1]), p1 = pack(p[2], p[3]);
#pragma unroll
    for (int h = 0; h < HALVES; ++h)
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        float(&to)[2] = o[h * 8 + j];
        to[0] *= faded;
        to[1] *= faded;
        const u32 select = j & 1 ? 0x7632u : 0x5410u;
        mma_top(to[0], to[1], p0, p1, __byte_perm(component(v[h][0], j >> 1), component(v[h][1], j >> 1), select),
            __byte_perm(component(v[h][2], j >> 1), component(v[h][3], j >> 1), select));
      }
  }
  sum += __shfl_xor_sync(0xffffffffu, sum, 1);
  sum += __shfl_xor_sync(0xffffffffu, sum, 2);
  if (g < GROUP) {
    if (t == 0) {
      maxima[warp * GROUP + g] = maximum;
      sums[warp * GROUP + g] = sum;
    }
    float* to = outputs + (warp * GROUP + g) * HEAD_DIM;
#pragma unroll
    for (int h = 0; h < HALVES; ++h)
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        to[h * 64 + 16 * t + j] = o[h * 8 + j][0];
        to[h * 64 + 16 * t + 8 + j] = o[h * 8 + j][1];
      }
  }
  __syncthreads();
"""


def tile(faded: str) -> str:
    """From a tile's keys in registers to each warp's maxima, sums and outputs in shared memory; ends the loop.

    Args:
        faded: the factor on what was summed before, from ``maximum`` and ``best``.
    """
    return _TILE.replace("FADED", faded)
