"""One decode step as one kernel, and the cache it writes in place.

The kernel writes keys and values into arrays that MLX believes unchanged. That is sound because nobody else holds them:
the prompt's ordinary steps have just written them, which copies whatever was shared, and a copy that is taken between
two steps shares only slots that no later step writes. Steps are ordered by the state that each takes and returns; it
holds positions, so that the host hands over no number that changes with the token.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from core.fast.describe import Description
from core.fast.layout import (
    FIELDS,
    MAX_KINDS,
    STATE_BASE,
    STATE_CAPACITY,
    STATE_ROWS,
    STATE_SIZE,
    THREADS,
    body,
    header,
    shared_bytes,
    work_bytes,
)
from core.kernels.cuda_code import CUDA_TYPES, Instance
from core.kernels.cuda_text import declaration
from core.nn import Cache
from core.nn.cache import KeyValues

_NAME = "corelm_step"
_kernels: dict[Any, Callable[..., list[mx.array]]] = {}
# Two steps in flight would wait for each other's blocks forever. Steps of one thread follow each other on its stream; a
# step of another thread waits for this array: a view of the last step's state that is touched in turn only, because an
# array that one thread waits for and another uses makes MLX 0.32 crash.
_turn = threading.Lock()
_latest: tuple[int, mx.array] | None = None


class FastStep:
    """Decode steps for one model and one cache, to be ``close``d before anything else uses the cache.

    Args:
        description: of the model and this cache.
        blocks: multiprocessors of the device; one block runs on each.
    """

    def __init__(self, description: Description, cache: Cache, blocks: int) -> None:
        self._description = description
        self._cache = cache
        self._blocks = blocks
        self._kernel = _kernel(description, blocks)
        shape = description.shape
        self._parameters = [mx.contiguous(array) for array in description.fields if array is not None]
        self._work = mx.zeros((work_bytes(shape, blocks) // 4,), dtype=mx.uint32) + mx.array(0, dtype=mx.uint32)
        self._state: mx.array | None = None
        self._layout: tuple[Any, ...] = ()
        self._held: list[mx.array] = []
        for block in cache.blocks:
            assert isinstance(block, KeyValues)
            block.replace([mx.contiguous(array) for array in block.arrays()])

    def __call__(self, tokens: mx.array) -> mx.array:
        """Logits ``[batch, vocab]`` after ``tokens`` ``[batch]``; to be evaluated before the next step is asked for."""
        cache, description = self._cache, self._description
        writes = cache.begin(cache.batch, 1, None)
        for block in cache.blocks:
            assert isinstance(block, KeyValues)
            move = writes[block.spec.window].before
            if move is not None:
                block.move(move, self._work if self._state is None else self._state)
        layout = tuple((writes[kind].base, cache.capacity(kind)) for kind in description.kinds)
        if self._state is None or layout != self._layout:
            self._enter(layout)
        assert self._state is not None
        shape = description.shape
        if tokens.dtype != mx.uint32:
            tokens = tokens.astype(mx.uint32)
        global _latest
        with _turn:
            if _latest is not None and _latest[0] != threading.get_ident():
                mx.eval(_latest[1])
            logits, self._state = self._kernel(
                inputs=[*self._held, tokens, self._state, self._work, description.frequencies],
                output_shapes=[(shape.batch, shape.vocabulary), (STATE_SIZE,)],
                output_dtypes=[mx.bfloat16, mx.int32],
                grid=(self._blocks * THREADS, 1, 1),
                threadgroup=(THREADS, 1, 1),
            )
            mark = self._state[:1]
            mx.async_eval(logits, self._state, mark)
            _latest = threading.get_ident(), mark
        after = {kind: write.after for kind, write in writes.items() if write.after is not None}
        for block in cache.blocks if after else ():
            assert isinstance(block, KeyValues)
            if (drop := after.get(block.spec.window)) is not None:
                block.move(drop, self._state)
                self._layout = ()
        cache.commit()
        return logits

    def close(self) -> None:
        """Waits for the steps so far, so that the cache can be used by anyone."""
        if self._state is not None:
            mx.eval(self._state)
        self._held = []

    def _enter(self, layout: tuple[Any, ...]) -> None:
        """Takes over the cache's present buffers."""
        state = [0] * STATE_SIZE
        state[: self._cache.batch] = self._cache.lengths
        for kind, (bases, capacity) in enumerate(layout[:MAX_KINDS]):
            state[STATE_BASE + kind * STATE_ROWS : STATE_BASE + kind * STATE_ROWS + len(bases)] = bases
            state[STATE_CAPACITY + kind] = capacity
        fresh = mx.array(state, dtype=mx.int32)
        self._state = fresh if self._state is None else mx.depends([fresh], [self._state])[0]
        self._layout = layout
        held: list[mx.array] = []
        parameters = iter(self._parameters)
        for i, array in enumerate(self._description.fields):
            layer, field = divmod(i, FIELDS)
            if layer < len(self._cache.blocks) and field in (2, 3):
                keys, values = self._cache.blocks[layer].arrays()
                held.append(keys if field == 2 else values)
            elif array is not None:
                held.append(next(parameters))
        self._held = held


def step_instance(description: Description, blocks: int) -> Instance:
    """The step's kernel as it is compiled.

    Args:
        blocks: multiprocessors of the device.
    """
    shape = description.shape
    cached = {layer * FIELDS + field for layer in range(shape.layers) for field in (2, 3)}
    names = [f"p{i}" if array is not None or i in cached else None for i, array in enumerate(description.fields)]
    inputs = [
        (mx.uint32 if array is not None and array.dtype == mx.uint32 else mx.bfloat16, name)
        for array, name in zip(description.fields, names, strict=True)
        if name is not None
    ]
    inputs += [(mx.uint32, "token"), (mx.int32, "state"), (mx.uint32, "work"), (mx.float32, "frequencies")]
    outputs = [(mx.bfloat16, "logits"), (mx.int32, "next_state")]
    parameters = [f"const {CUDA_TYPES[dtype]}* {name}" for dtype, name in inputs]
    parameters += [f"{CUDA_TYPES[dtype]}* {name}" for dtype, name in outputs]
    return Instance(
        name=_NAME,
        input_names=tuple(name for _, name in inputs),
        output_names=tuple(name for _, name in outputs),
        source=body(names),
        header=header(shape, blocks) + declaration(_NAME, THREADS, 1, parameters),
        inputs=tuple((dtype, True) for dtype, _ in inputs),
        outputs=tuple(dtype for dtype, _ in outputs),
    )


def _kernel(description: Description, blocks: int) -> Callable[..., list[mx.array]]:
    key = description.shape, blocks
    if key not in _kernels:
        instance = step_instance(description, blocks)
        kernel: Any = mx.fast.cuda_kernel(
            name=instance.name,
            input_names=list(instance.input_names),
            output_names=list(instance.output_names),
            source=instance.source,
            header=instance.header,
            ensure_row_contiguous=False,
            shared_memory=shared_bytes(description.shape, blocks),
        )
        _kernels[key] = kernel
    return _kernels[key]
