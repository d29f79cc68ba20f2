"""One call of the CPU library for some tokens of some caches: its structures, made and held."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import mlx.core as mx

from core.cpu.arrays import known_address
from core.cpu.calls import library
from core.cpu.structures import Pass, Rotation, Run, View
from core.cpu_pass.description import Description
from core.nn.key_values import KeyValues
from core.nn.rope import RoPE
from core.nn.span import Limit, Reach
from core.nn.step import StepPlan

_Pointers = ctypes.Array[ctypes.c_void_p]


class Passage:
    """One call: the arrays that its structures point to live as long as it does."""

    def __init__(self, description: Description, plans: Sequence[StepPlan]) -> None:
        self._description = description
        self._plans = plans
        self.interrupt: BaseException | None = None
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
        tokens, out = mx.contiguous(tokens), mx.zeros((max(1, rows), hidden))
        mx.eval(tokens, out)
        caches = self._caches()
        if rows:
            self._compute(tokens, out, *caches)
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

    def _compute(
        self, tokens: mx.array, out: mx.array, keys: _Pointers, values: _Pointers, slots: list[list[int]]
    ) -> None:
        description = self._description
        rotations = (Rotation * len(description.ropes))(*[self._rotation(rope) for rope in description.ropes])
        views = (View * len(description.windows))(*[self._view(i, slots) for i in range(len(description.windows))])
        runs = (Run * len(self._runs))(*[Run(*run) for run in self._runs])
        call = Pass(
            known_address(tokens),
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
            known_address(out),
        )
        function, model, these = library().corelm_forward, ctypes.byref(description.model), ctypes.byref(call)
        try:
            function(model, these)
        except BaseException as interrupt:  # of a signal's handler, which runs when the library has returned
            self.interrupt = interrupt

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
                keys[layer * caches + cache], values[layer * caches + cache] = map(known_address, buffers)
        self._held.append(opened)
        return keys, values, [[buffers[0].shape[2] for buffers in blocks] for blocks in opened]

    def _rotation(self, rope: RoPE) -> Rotation:
        rows, pairs = len(self._positions), rope.dims // 2
        longest = max(plan.starts[row] + plan.seq for plan in self._plans for row in range(plan.batch))
        frequencies = mx.array(rope.frequencies(longest), dtype=mx.float32)
        room = mx.zeros((2, rows, pairs))
        mx.eval(frequencies, room)
        self._held += [frequencies, room]
        at = known_address(room)
        return Rotation(
            known_address(frequencies), rope.attention_factor, rope.dims, rope.traditional, at, at + 4 * rows * pairs
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


def _reach(block: object) -> Reach:
    assert isinstance(block, KeyValues)
    return block.reach
