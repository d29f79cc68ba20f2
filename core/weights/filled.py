"""``FilledTensors``: reads tensors into memory of their own, with the threads of a ``Filler``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import Future

import mlx.core as mx

from core.checkpoint import TensorInfo
from core.weights.fill import Filler, blank
from core.weights.joint import Extent, extent
from core.weights.nodes import Leaf

_SMALL = 1 << 18  # bytes that are read sooner than another thread begins


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
        found = {name: extent(Leaf(name), -1, self._tensors) for name in names if name not in self._begun}
        large = {name: (blank(one.nbytes), one) for name, one in found.items() if one and one.nbytes > _SMALL}
        mx.eval([memory for memory, _ in large.values()])
        for name, (memory, one) in large.items():
            self._begun[name] = memory, one, self._filler.fill(memory, one.runs, None)
        for name, small in found.items():
            if small is not None and name not in large:
                self._begun[name] = self._filler.read(small.runs[0]), small, []

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
