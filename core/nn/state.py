"""``State``: the memory of a recurrent or convolutional block."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from core.errors import CacheError
from core.nn.spec import CacheSpec


class State:
    """Named arrays of one recurrent block; each step replaces them. Reads and writes like a dictionary."""

    def __init__(self, spec: CacheSpec, batch: int) -> None:
        self.spec = spec
        dtype = spec.dtype or mx.float32
        self._now = {name: mx.zeros((batch, *shape), dtype=dtype) for name, shape in spec.shapes.items()}
        self._before = dict(self._now)

    def __getitem__(self, name: str) -> mx.array:
        return self._now[name]

    def __setitem__(self, name: str, value: mx.array) -> None:
        if name not in self._now:
            raise CacheError(
                f"this block's CacheSpec has no state {name!r}", expected=", ".join(self._now) or "no state"
            )
        self._now[name] = value

    def begin(self) -> None:
        """Keeps the present state, so that the step that starts now can be undone."""
        self._before = dict(self._now)

    def undo(self) -> None:
        """Undoes the last step."""
        self._now = dict(self._before)

    @property
    def nbytes(self) -> int:
        """Bytes allocated. Asking changes nothing."""
        return sum(array.nbytes for array in self._now.values())

    def arrays(self) -> list[mx.array]:
        """The arrays held, rows on axis 0."""
        return list(self._now.values())

    def layout(self, slots: int) -> list[tuple[str, tuple[int, ...]]]:
        """Kind (``any``) and shape of ``arrays()`` for one row, which has no slots."""
        return [("any", (1, *shape)) for shape in self.spec.shapes.values()]

    def replace(self, arrays: Sequence[mx.array]) -> None:
        """Replaces the arrays, in the order of ``arrays()``. There is then no last step to undo."""
        self._now = dict(zip(self._now, arrays, strict=True))
        self._before = dict(self._now)

    def copy(self) -> State:
        """An independent cache with the same content."""
        twin = State.__new__(State)
        twin.spec = self.spec
        # Copy the wrappers too: an assignment to a slice changes a Python object.
        twin._now, twin._before = ({n: a[:] for n, a in held.items()} for held in (self._now, self._before))
        return twin
