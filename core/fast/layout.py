"""The CUDA text of a step, from its shape: constants, work space, shared memory, and the texts of the other files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from core.fast import attention, primitives, product, program, staging, stream
from core.fast.shape import StepShape
from core.kernels.source_files import CUDA, source_text

THREADS = 256
WARPS = THREADS // 32
SHARED_BYTES = 227 * 1024  # of one block on compute capability 9.0
FIELDS = 17  # addresses a layer: two norms, keys, values, weights, scales and biases of four matrices, the router
STATE_ROWS = 8
STATE_BASE = 8  # state: positions, then each cache kind's base of each sequence, then each kind's capacity
MAX_KINDS = 4
STATE_CAPACITY = STATE_BASE + MAX_KINDS * STATE_ROWS
STATE_SIZE = 64


@dataclass(frozen=True, slots=True)
class _Memory:
    """Bytes from the start of a block's shared memory."""

    shares: int
    turns: int
    mine: int
    zeros: int
    chosen: int
    reduce: int
    input: int
    sums: int
    parts: int
    ring: int
    unit: int
    stages: int
    total: int

    @classmethod
    def of(cls, shape: StepShape, blocks: int) -> _Memory:
        group = shape.heads // shape.kv_heads
        columns = max(columns for _, columns in shape.matrices)
        attention_bytes = (
            group * (shape.head_dim + 8) * 2 + (WARPS * (shape.head_dim + 2) + 2 * blocks) * group * 4 + 16
        )
        tiles = max(-(-rows // 32 // blocks) * 2 for rows, _ in shape.matrices)
        own_tiles = -(-shape.hidden // 16 // blocks)
        shares = _up(8 * (shape.layers * FIELDS + 8), 128)
        turns = shares + _up(5 * WARPS * 24, 128)
        mine = turns + _up(shape.batch * shape.head_dim * 4, 128)
        zeros = mine + _up(own_tiles * 16 * shape.batch * 4, 128) + 64
        chosen = zeros + 1024 + 64
        reduce = chosen + 128
        inputs = reduce + _up(4 * (_reduce_floats(shape) + shape.batch), 128)
        sums = inputs + _up(max(shape.batch * (columns * 2 + 64), attention_bytes), 128)
        parts = sums + _up(shape.batch * 4 * (columns // 64 + 8) * 2, 128)
        ring = parts + _up((tiles + WARPS) * 16 * shape.batch * 4, 128)
        unit = 4096 + max({4: 512, 8: 256, 16: 0}[width] for width in shape.widths)
        stages = min(8, (SHARED_BYTES - ring) // (WARPS * unit))
        return cls(
            shares,
            turns,
            mine,
            zeros,
            chosen,
            reduce,
            inputs,
            sums,
            parts,
            ring,
            unit,
            stages,
            ring + WARPS * stages * unit,
        )


_PLACES = ("shares", "turns", "mine", "zeros", "chosen", "reduce", "input", "sums", "parts", "ring")


def _reduce_floats(shape: StepShape) -> int:
    return WARPS * (2 + shape.experts)


def problem(shape: StepShape, blocks: int) -> str | None:
    """Why a step of this shape cannot be generated for a device of so many multiprocessors."""
    if not 1 <= shape.batch <= 4:
        return f"a batch of {shape.batch} (1 to 4 are supported)"
    if shape.head_dim not in (64, 128):
        return f"a head of {shape.head_dim} features (64 and 128 are supported)"
    if shape.heads % shape.kv_heads or shape.heads // shape.kv_heads > 8:
        return f"{shape.heads} query heads for {shape.kv_heads} key/value heads (at most 8 to 1)"
    if shape.batch * shape.kv_heads > min(blocks, 128):
        return f"{shape.batch * shape.kv_heads} key/value heads (at most {min(blocks, 128)})"
    if len(shape.windows) > MAX_KINDS:
        return f"{len(shape.windows)} kinds of cache (at most {MAX_KINDS})"
    for (rows, columns), width in zip(shape.matrices, shape.widths, strict=True):
        if rows % 32 or columns * width % 2048:
            return f"a matrix [{rows}, {columns}] of {width} bits (rows in 32s, 256-byte pieces of a row)"
    if shape.experts and (shape.batch > 1 or shape.experts > 32 or shape.chosen > min(8, shape.experts)):
        return f"{shape.chosen} of {shape.experts} experts for {shape.batch} sequences"
    if shape.intermediate * shape.widths[3] % 2048 or shape.intermediate % 64:
        return f"an intermediate size of {shape.intermediate}"
    if shape.hidden % 512 or shape.hidden > 16384:
        return f"a hidden size of {shape.hidden}"
    if _Memory.of(shape, blocks).stages < 2:
        return "activations that leave no room in shared memory"
    return None


def shared_bytes(shape: StepShape, blocks: int) -> int:
    """Shared memory that a block takes."""
    return _Memory.of(shape, blocks).total


def _work(shape: StepShape, blocks: int) -> dict[str, int]:
    sizes = {
        "WORK_STREAM": shape.batch * shape.hidden * 4,
        "WORK_QKV": shape.batch * shape.qkv_rows * 4,
        "WORK_PARTIAL": blocks * (shape.heads // shape.kv_heads) * (shape.head_dim + 2) * 4,
        "WORK_ATTENDED": shape.batch * shape.query_rows * 2,
        "WORK_ACTIVATED": shape.batch * shape.intermediate * shape.chosen * 2,
    }
    at, places = 1024, {}
    for name, size in sizes.items():
        places[name] = at
        at += _up(size, 256)
    return {**places, "WORK_BYTES": at}


def work_bytes(shape: StepShape, blocks: int) -> int:
    """Device memory that blocks exchange numbers in; its first 1024 bytes must be zero before the first step."""
    return _work(shape, blocks)["WORK_BYTES"]


def header(shape: StepShape, blocks: int) -> str:
    """The text before the kernel's own body; the same for equal arguments."""
    memory = _Memory.of(shape, blocks)
    constants = {
        "THREADS": THREADS,
        "WARPS": WARPS,
        "BATCH": shape.batch,
        "LAYERS": shape.layers,
        "FIELDS": FIELDS,
        "HEAD_FIELD": shape.layers * FIELDS,
        "NORM_FIELD": shape.layers * FIELDS + 3,
        "EMBEDDING_FIELD": shape.layers * FIELDS + 4,
        "EMBEDDING_BITS": shape.embedding_width,
        "HIDDEN": shape.hidden,
        "INTERMEDIATE": shape.intermediate,
        "ACTIVATED": shape.intermediate * shape.chosen,
        "EXPERTS": shape.experts,
        "CHOSEN": shape.chosen,
        "KV_HEADS": shape.kv_heads,
        "GROUP": shape.heads // shape.kv_heads,
        "HEAD_DIM": shape.head_dim,
        "QUERY_ROWS": shape.query_rows,
        "QKV_ROWS": shape.qkv_rows,
        "VOCABULARY": shape.vocabulary,
        "REDUCE_FLOATS": _reduce_floats(shape),
        "STATE_ROWS": STATE_ROWS,
        "STATE_BASE": STATE_BASE,
        "STATE_CAPACITY": STATE_CAPACITY,
        "STATE_SIZE": STATE_SIZE,
        "STAGES": memory.stages,
        "UNIT_BYTES": memory.unit,
        **{f"SMEM_{name.upper()}": getattr(memory, name) for name in _PLACES},
        **_work(shape, blocks),
    }
    floats = dict(zip(("ATTENTION_EPSILON", "FEED_FORWARD_EPSILON", "HEAD_EPSILON"), shape.epsilons, strict=True))
    floats["ROTARY_FACTOR"] = shape.rotary_factor
    floats["SCORE_SCALE"] = shape.head_dim**-0.5 * math.log2(math.e)
    lines = [f"constexpr int {name} = {value};" for name, value in constants.items()]
    lines += [f"constexpr float {name} = {value!r}f;" for name, value in floats.items()]
    units = [columns * width // 2048 for (_, columns), width in zip(shape.matrices, shape.widths, strict=True)]
    lines += [
        _choice("BITS", "kind", shape.widths),
        _choice("TILES", "kind", [rows // 16 for rows, _ in shape.matrices]),
        _choice("UNITS", "kind", units),
        _choice("SEGMENT", "kind", [*units[:3], units[3] // shape.chosen, units[4]]),
        _choice("PAIRED", "kind", [0, 0, 1, 0, 0]),
        _choice("WINDOW", "kind", shape.windows),
        _choice("CACHE_KIND", "layer", shape.cache_kinds),
    ]
    texts = (
        primitives.SOURCE,
        stream.SOURCE,
        product.SOURCE,
        program.SOURCE,
        attention.SOURCE,
        staging.SOURCE,
        program.STEP,
    )
    return "\n".join(
        [
            "#include <cuda_bf16.h>",
            "#include <cuda_fp16.h>",
            source_text(CUDA / "primitives.cuh"),
            "namespace corelm {",
            "using namespace corelm_cuda;",
            *lines,
            *texts,
            "}  // namespace corelm\n",
        ]
    )


def _choice(name: str, argument: str, values: tuple[int, ...] | list[int]) -> str:
    """A constexpr function from an index to one of a few numbers."""
    if len(set(values)) == 1:
        text = str(values[0])
    else:
        text = "".join(f"{argument} == {i} ? {v} : " for i, v in enumerate(values[:-1])) + str(values[-1])
    return f"__host__ __device__ constexpr int {name}(int {argument}) {{ return {text}; }}"


def body(names: Sequence[str | None]) -> str:
    """The kernel's body: the addresses of ``names`` (None: no such field) into shared memory, then the step."""
    lines = ["extern __shared__ __align__(128) unsigned char smem[];"]
    lines.append("const unsigned char** table = reinterpret_cast<const unsigned char**>(smem);")
    for warp in range(WARPS):
        lines.append(f"if (threadIdx.x == {32 * warp}) {{")
        lines += [
            f"table[{i}] = reinterpret_cast<const unsigned char*>({name});"
            for i, name in enumerate(names)
            if name is not None and i % WARPS == warp
        ]
        lines.append("}")
    lines.append("__syncthreads();")
    lines.append(
        "corelm::step(table, token, state, reinterpret_cast<unsigned char*>(const_cast<uint32_t*>(work)), frequencies,"
        " logits, next_state, smem);"
    )
    return "\n".join(lines)


def _up(size: int, to: int) -> int:
    return -(-size // to) * to
