"""Passes through a model's blocks in one call of the CPU library, which writes keys and values where the caches are."""

from __future__ import annotations

import ctypes
import functools
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from core.cpu.arrays import address
from core.cpu.describe import Description, UnsupportedError, describe
from core.cpu.library import load_library
from core.cpu.structures import Pass, Rotation, Run, View
from core.kernels.device import cpu_sources, in_inference
from core.nn.key_values import KeyValues
from core.nn.rope import RoPE
from core.nn.span import Limit, Reach
from core.nn.step import StepPlan

_descriptions: dict[int, tuple[weakref.ref[nn.Module], Description]] = {}
_lock = threading.Lock()
_Pointers = ctypes.Array[ctypes.c_void_p]


def reason(decoder: nn.Module) -> str | None:
    """Why the CPU library does not compute this model's passes; None where it does.

    It follows "because of".
    """
    if not cpu_sources():
        return "no CPU library for the device at hand"
    found = _description(decoder)
    return found if isinstance(found, str) else None


def hidden_states(decoder: nn.Module, tokens: mx.array, plans: Sequence[StepPlan]) -> mx.array | None:
    """The blocks' output before the final norm; None where MLX is to compute it.

    Args:
        tokens: integers; the plans' rows one after the other, each row's tokens in their order.
        plans: of the caches of one step, begun and not yet ended.

    Returns:
        float32 ``[tokens, hidden_size]``; zeros for padding.
    """
    description = _usable(decoder)
    if description is None or not all(_fits(description, plan) for plan in plans):
        return None
    with _lock:
        return _Passage(description, plans).run(tokens.flatten())


def head(decoder: nn.Module, x: mx.array) -> mx.array | None:
    """Final norm and language head, float32 ``[..., vocab_size]``; None where MLX is to compute it."""
    description = _usable(decoder)
    if description is None or x.dtype != mx.float32 or x.size == 0:
        return None
    rows = x.size // x.shape[-1]
    x = mx.contiguous(x)
    logits = mx.zeros((*x.shape[:-1], description.model.head.rows))
    mx.eval(x, logits)
    library = load_library()
    assert library is not None
    library.corelm_head(
        ctypes.byref(description.model), _pointer(address(x)), ctypes.c_int64(rows), _pointer(address(logits))
    )
    return logits


def _usable(decoder: nn.Module) -> Description | None:
    if not cpu_sources() or not in_inference():
        return None
    found = _description(decoder)
    return found if isinstance(found, Description) else None


def _description(decoder: nn.Module) -> Description | str:
    known = _descriptions.get(id(decoder))
    if known is not None and known[0]() is decoder and known[1].holds():
        return known[1]
    try:
        found = describe(decoder)
    except UnsupportedError as error:
        return str(error)
    key = id(decoder)
    _descriptions[key] = weakref.ref(decoder, functools.partial(_forget, key, _descriptions)), found
    return found


def _forget(key: int, descriptions: dict[int, Any], _: object) -> None:
    descriptions.pop(key, None)


def _fits(description: Description, plan: StepPlan) -> bool:
    """Whether all caches of a plan keep float32 keys and values, or nothing yet, and show the blocks what they see."""
    reaches: dict[int, Reach] = {}
    for block, layer in zip(plan.blocks, description.layers, strict=True):
        if not isinstance(block, KeyValues) or not {block.spec.dtype, block.dtype} <= {None, mx.float32}:
            return False
        window = description.windows[layer.view]
        if isinstance(block.reach, int) and (window is None or window > block.reach):
            return False
        if reaches.setdefault(layer.view, block.reach) != block.reach:
            return False
    return True


class _Passage:
    """One call: the arrays that its structures point to live as long as it does."""

    def __init__(self, description: Description, plans: Sequence[StepPlan]) -> None:
        self._description = description
        self._plans = plans
        self._held: list[object] = []
        self._index: list[int] = []  # of the tokens that are no padding
        runs: list[tuple[int, int, int, int]] = []
        positions: list[int] = []
        start = 0
        for cache, plan in enumerate(plans):
            for row, count in enumerate(plan.real):
                if count:
                    runs.append((len(positions), count, cache, row))
                    positions += range(plan.starts[row], plan.starts[row] + count)
                    self._index += range(start, start + count)
                start += plan.seq
        self._tokens = start
        self._runs, self._positions = runs, positions

    def run(self, tokens: mx.array) -> mx.array:
        """Computes the pass."""
        rows = len(self._positions)
        hidden = self._description.model.hidden
        padded = rows < self._tokens
        if padded:
            tokens = mx.take(tokens, mx.array(self._index, dtype=mx.int32))
        if tokens.dtype not in (mx.int32, mx.uint32):
            tokens = tokens.astype(mx.int32)
        out = mx.zeros((max(1, rows), hidden))
        mx.eval(tokens, out)
        if rows:
            self._compute(tokens, out)
        for plan in self._plans:
            for block in plan.blocks:
                assert isinstance(block, KeyValues)
                block.close_in_place(plan.writes[block.reach])
        if not padded:
            return out
        places = [0] * self._tokens
        for place, token in enumerate(self._index):
            places[token] = place
        real = mx.zeros((self._tokens, 1))
        real[mx.array(self._index, dtype=mx.int32)] = 1.0
        return mx.take(out, mx.array(places, dtype=mx.int32), axis=0) * real

    def _compute(self, tokens: mx.array, out: mx.array) -> None:
        description = self._description
        keys, values, slots = self._caches()
        rotations = (Rotation * len(description.ropes))(*[self._rotation(rope) for rope in description.ropes])
        views = (View * len(description.windows))(*[self._view(i, slots) for i in range(len(description.windows))])
        runs = (Run * len(self._runs))(*[Run(*run) for run in self._runs])
        call = Pass(
            address(tokens),
            ctypes.addressof(self._integers(self._positions)),
            len(self._positions),
            len(runs),
            len(self._plans),
            len(rotations),
            len(views),
            ctypes.addressof(runs),
            ctypes.addressof(rotations),
            ctypes.addressof(views),
            ctypes.addressof(keys),
            ctypes.addressof(values),
            address(out),
        )
        library = load_library()
        assert library is not None
        library.corelm_forward(ctypes.byref(description.model), ctypes.byref(call))

    def _caches(self) -> tuple[_Pointers, _Pointers, list[list[int]]]:
        """Pointers to the buffers of each layer and cache, and for each cache the slots of each layer's."""
        layers, caches = self._description.model.layers, len(self._plans)
        keys, values = (ctypes.c_void_p * (layers * caches))(), (ctypes.c_void_p * (layers * caches))()
        opened = [
            [block.open_in_place(plan.batch, plan.writes[block.reach]) for block in plan.blocks]  # type: ignore[union-attr]
            for plan in self._plans
        ]
        mx.eval(opened)
        for cache, blocks in enumerate(opened):
            for layer, buffers in enumerate(blocks):
                keys[layer * caches + cache], values[layer * caches + cache] = map(address, buffers)
        self._held.append(opened)
        return keys, values, [[buffers[0].shape[2] for buffers in blocks] for blocks in opened]

    def _rotation(self, rope: RoPE) -> Rotation:
        rows, pairs = len(self._positions), rope.dims // 2
        longest = max(plan.starts[row] + plan.seq for plan in self._plans for row in range(plan.batch))
        frequencies = mx.array(rope.frequencies(longest), dtype=mx.float32)
        room = mx.zeros((2, rows, pairs))
        mx.eval(frequencies, room)
        self._held += [frequencies, room]
        at = address(room)
        assert at is not None
        return Rotation(
            address(frequencies), rope.attention_factor, rope.dims, rope.traditional, at, at + 4 * rows * pairs
        )

    def _view(self, which: int, slots: list[list[int]]) -> View:
        """What blocks of one kind see; their caches have one reach."""
        window = self._description.windows[which]
        layer = next(i for i, layer in enumerate(self._description.layers) if layer.view == which)
        blocks = [plan.blocks[layer] for plan in self._plans]
        reach = _reach(blocks[0])
        front, recent = 0, window
        if isinstance(reach, Limit) and (window is None or window > reach.tokens):
            front, recent = reach.kept, reach.tokens - reach.kept
        bases = [plan.writes[_reach(block)].base for plan, block in zip(self._plans, blocks, strict=True)]
        first = [self._plans[cache].starts[row] - bases[cache][row] for _, _, cache, row in self._runs]
        sizes = (ctypes.c_int64 * len(blocks))(*[each[layer] for each in slots])
        self._held.append(sizes)
        return View(ctypes.addressof(sizes), ctypes.addressof(self._integers(first)), front, recent or 0)

    def _integers(self, values: list[int]) -> ctypes.Array[ctypes.c_int32]:
        made = (ctypes.c_int32 * len(values))(*values)
        self._held.append(made)
        return made


def _pointer(at: int | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(at)


def _reach(block: object) -> Reach:
    assert isinstance(block, KeyValues)
    return block.reach
