"""CUDA text: attention of a tile of queries with ``wgmma``, Hopper's products of four warps, keys in shared memory.

FlashAttention-3's arrangement within a warp group (Shah et al., 2024): scores of the next keys, and the sum over these
values, are under way while the softmax is taken. Follows ``prefill_attention_source``.
"""


def _registers(kind: str, name: str, count: int) -> str:
    return ", ".join(f'"{kind}"({name}[{i}])' for i in range(count))


def _numbers(start: int, count: int) -> str:
    return "{" + ", ".join(f"%{i}" for i in range(start, start + count)) + "}"


def _product(sums: int, a: str, options: str) -> str:
    """Adds to so many sums of a lane the product of what is in registers or memory (``a``) with a matrix in memory."""
    b = sums + a.count("%")
    operands = f"{_numbers(0, sums)}, {a}, %{b}, p, {options}"
    return f"setp.ne.b32 p, %{b + 1}, 0; wgmma.mma_async.sync.aligned.m64n{2 * sums}k16.f32.bf16.bf16 {operands};"


def _products(columns: int) -> str:
    """Products of 64 rows with so many columns over 16 of the inner dimension, and waiting for them."""
    sums = columns // 2
    return f"""
__device__ __forceinline__ void multiply(float* d, u64 a, u64 b, int add, Columns<{columns}>) {{
  asm volatile("{{ .reg .pred p; {_product(sums, f"%{sums}", "1, 1, 0, 0")} }}"
               : {_registers("+f", "d", sums)}
               : "l"(a), "l"(b), "r"(add));
}}
__device__ __forceinline__ void multiply(float* d, const u32* a, u64 b, Columns<{columns}>) {{
  asm volatile("{{ .reg .pred p; {_product(sums, _numbers(sums, 4), "1, 1, 1")} }}"
               : {_registers("+f", "d", sums)}
               : {_registers("r", "a", 4)}, "l"(b), "r"(1));
}}
template <int PENDING>
__device__ __forceinline__ void wait_for(float* d, Columns<{columns}>) {{
  asm volatile("wgmma.wait_group.sync.aligned %{sums};" : {_registers("+f", "d", sums)} : "n"(PENDING) : "memory");
}}
"""


PRODUCTS = (
    r"""
template <int COUNT>
struct Columns {};
__device__ __forceinline__ void fence_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void show_to_products() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// A matrix in shared memory: rows of 128 bytes, 16 bytes of each exchanged by the row (mode 1), groups of 8 rows
// together; ``next`` is how far the next 64 columns are, where a row is one of the inner dimension.
__device__ __forceinline__ u64 matrix(u32 at, u32 next) {
  return (at & 0x3ffff) >> 4 | static_cast<u64>(next >> 4) << 16 | static_cast<u64>(1024 >> 4) << 32 | 1ull << 62;
}
"""
    + _products(64)
    + _products(128)
)

HEADER = (
    PRODUCTS
    + r"""
__device__ __forceinline__ void attend(const Queries& queries, const Slots& keys, const Slots& values,
                                       const int* bounds, int first, Out* out, int heads, unsigned char* memory) {
  const int within = (threadIdx.x >> 5) * 16, mine = first + within;
  const u32 asked = smem_address(memory), held = asked + ASKED_BYTES;  // two tiles of keys, then two of values
  const Sight sight(bounds, queries.slot(first), queries.slot(first + ROWS - 1));
  const auto load_keys = [&](int i) {
    if (i < sight.tiles) keys.load(held + i % 2 * TILE_BYTES, sight.at(i));
  };
  const auto load_values = [&](int i) {
    if (i < sight.tiles) values.load(held + (2 + i % 2) * TILE_BYTES, sight.at(i));
  };
  queries.load(memory, first);
  load_keys(0);
  copy_commit();
  load_values(0);
  load_keys(1);
  copy_commit();

  float o[1][FEATURE_TILES][4], s[1][KEY_TILES][4];
  u32 p[KEYS / 16][4];
#pragma unroll
  for (int n = 0; n < FEATURE_TILES * 4; ++n) (&o[0][0][0])[n] = 0.f;
  const u32 rows = asked + (within & ~63) * 128;
  const auto score = [&](int i) {
    const u32 tile = held + i % 2 * TILE_BYTES;
#pragma unroll
    for (int k = 0; k < HEAD_DIM / 16; ++k)
      multiply(&s[0][0][0], matrix(rows + k / 4 * ROWS * 128 + k % 4 * 32, 16),
               matrix(tile + k / 4 * KEYS * 128 + k % 4 * 32, 16), k > 0, Columns<KEYS>());
    commit_products();
  };
  const auto sum_values = [&](int i) {
    const u32 tile = held + (2 + i % 2) * TILE_BYTES;
#pragma unroll
    for (int k = 0; k < KEYS / 16; ++k)
      multiply(&o[0][0][0], p[k], matrix(tile + k * 16 * 128, KEYS * 128), Columns<HEAD_DIM>());
    commit_products();
  };
  const auto round = [&] {
#pragma unroll
    for (int k = 0; k < KEYS / 16; ++k)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float(&from)[4] = s[0][2 * k + (j >> 1)];
        p[k][j] = pack(from[j % 2 * 2], from[j % 2 * 2 + 1]);
      }
  };
  Softmax softmax;
  copy_wait<1>();
  show_to_products();
  __syncthreads();
  if (sight.tiles > 0) {
    fence_products();
    score(0);
    wait_for<0>(&s[0][0][0], Columns<KEYS>());
    softmax.hide(s, sight, queries, mine, sight.at(0));
    softmax.weigh(s);
    round();
#pragma unroll 1
    for (int i = 0; i + 1 < sight.tiles; ++i) {
      copy_wait<0>();
      show_to_products();
      __syncthreads();
      load_values(i + 1);
      load_keys(i + 2);
      copy_commit();
      fence_products();
      score(i + 1);
      sum_values(i);
      wait_for<1>(&s[0][0][0], Columns<KEYS>());
      softmax.hide(s, sight, queries, mine, sight.at(i + 1));
      const bool grown = softmax.weigh(s);
      wait_for<0>(&o[0][0][0], Columns<HEAD_DIM>());
      if (grown) softmax.fade(o);
      round();
    }
    copy_wait<0>();
    show_to_products();
    __syncthreads();
    fence_products();
    sum_values(sight.tiles - 1);
    wait_for<0>(&o[0][0][0], Columns<HEAD_DIM>());
  }
  copy_wait<0>();
  softmax.store(o, queries, mine, out, heads);
}
"""
)
