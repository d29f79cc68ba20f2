"""What the CPU library is told of a model, and what of the model that was made from."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from core.cpu.arrays import addresses
from core.cpu.structures import Layer, Model
from core.nn.rope import RoPE


class Basis:
    """The modules, arrays and settings that something was derived from.

    Args:
        decoder: the model. It is not held, so that it can be freed; its parts are.
    """

    def __init__(self, decoder: nn.Module) -> None:
        self._decoder = id(decoder)
        self._own: list[tuple[Any, object]] = []  # of the decoder itself
        self._seen: list[tuple[Callable[[Any], object], Any, object]] = []
        self._arrays: list[mx.array] = []
        self._at: list[int] = []
        self._ends = 0, 0

    def see(self, holder: Any, key: Any, value: object) -> None:
        """Notes that ``holder.get(key)`` is ``value``."""
        if id(holder) == self._decoder:
            self._own.append((key, value))
        else:
            self._seen.append((holder.get, key, value))

    def see_item(self, values: list[Any], index: int) -> None:
        """Notes which object a list has in a place, or that it ends before."""
        items = _Items(values)
        self.see(items, index, items.get(index))

    def see_array(self, array: mx.array, at: int) -> None:
        """Notes where an array lies in memory: ``array += …`` moves its numbers, and the object stays the same."""
        self._arrays.append(array)
        self._at.append(at)

    def end_of_head(self) -> None:
        """What was noted so far is all that the embedding, the final norm and the head are made from."""
        self._ends = len(self._seen), len(self._arrays)

    def holds(self, decoder: nn.Module) -> bool:
        """Whether all of it is still so.

        Args:
            decoder: the model.
        """
        return self._still(decoder, self._seen, self._arrays, self._at)

    def head_holds(self, decoder: nn.Module) -> bool:
        """Whether what was noted before ``end_of_head`` is still so."""
        seen, arrays = self._ends
        return self._still(decoder, self._seen[:seen], self._arrays[:arrays], self._at[:arrays])

    def _still(
        self,
        decoder: nn.Module,
        seen: list[tuple[Callable[[Any], object], Any, object]],
        arrays: list[mx.array],
        at: list[int],
    ) -> bool:
        for key, value in self._own:
            if decoder.get(key) is not value:
                return False
        for get, key, value in seen:  # a loop: it runs at each step
            if get(key) is not value:
                return False
        return addresses(arrays) == at


@dataclass
class Description:
    """A model's structure for the library.

    Attributes:
        model: the C structure; it points into arrays of the model.
        ropes: the rotary embeddings, in the order of the layers' ``rotation``.
        windows: what the blocks of each kind see of their cache; in the order of the layers' ``view``.
        layers: the blocks' C structures, which the model's points to.
    """

    model: Model
    ropes: list[RoPE]
    windows: list[int | None]
    layers: ctypes.Array[Layer]
    _held: list[object] = field(default_factory=list)


class _Items:
    """A list that is asked as a dictionary is."""

    def __init__(self, values: list[Any]) -> None:
        self._values = values

    def get(self, index: int) -> Any:
        return self._values[index] if index < len(self._values) else None
