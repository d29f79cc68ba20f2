"""``FilledTensors``: reads tensors into memory of their own, with the threads of a ``Filler``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import Future

import mlx.core as mx

from core.checkpoint import TensorInfo
from core.weights.fill import Filler, blank
from core.weights.joint import Extent, extent
from core.weights.nodes import Leaf


class FilledTensors:
    """Reads the tensors given to ``begin``, and returns each once.

    Args:
        filler: its threads read.
        tensors: the checkpoint's tensors, by name.
    """

    def __init__(self, filler: Filler, tensors: Mapping[str, TensorInfo]) -> None:
        self._filler = filler
        self._tensors = tensors
        self._begun: dict[str, tuple[mx.array, Extent, list[Future[bool]]]] = {}

    def begin(self, names: Iterable[str]) -> None:
        """Starts to read tensors. Those whose dtype needs a conversion are left out.

        Raises:
            OSError: a shard cannot be opened.
            CheckpointError: a shard has changed.
        """
        extents = {name: extent(Leaf(name), -1, self._tensors) for name in names if name not in self._begun}
        found = {name: one for name, one in extents.items() if one is not None}
        memory = {name: blank(one.nbytes) for name, one in found.items()}
        mx.eval(list(memory.values()))
        for name, one in found.items():
            self._begun[name] = memory[name], one, self._filler.fill(memory[name], one.runs, None)

    def take(self, name: str) -> mx.array | None:
        """A tensor, evaluated; each is returned once. None for one that was not begun.

        Raises:
            OSError: reading failed.
        """
        if name not in self._begun:
            return None
        memory, found, jobs = self._begun.pop(name)
        for job in jobs:
            job.result()
        return found.view(memory)
