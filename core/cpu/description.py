"""What the CPU library is told of a model, and what of the model that was made from."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from core.cpu.arrays import address
from core.cpu.structures import Layer, Model
from core.nn.rope import RoPE


class Basis:
    """The modules, arrays and settings that something was derived from.

    Args:
        decoder: the model. It is not held, so that it can be freed; its parts are.
    """

    def __init__(self, decoder: nn.Module) -> None:
        self._decoder = id(decoder)
        self._seen: list[tuple[Any, Any, object]] = []
        self._arrays: list[tuple[mx.array, int]] = []

    def see(self, holder: Any, key: object, value: object) -> None:
        """Notes that ``holder.get(key)`` is ``value``."""
        self._seen.append((None if id(holder) == self._decoder else holder, key, value))

    def see_item(self, values: list[Any], index: int) -> None:
        """Notes which object a list has in a place, or that it ends before."""
        items = _Items(values)
        self._seen.append((items, index, items.get(index)))

    def see_array(self, array: mx.array, at: int) -> None:
        """Notes where an array lies in memory: ``array += …`` moves its numbers, and the object stays the same."""
        self._arrays.append((array, at))

    def holds(self, decoder: nn.Module) -> bool:
        """Whether all of it is still so.

        Args:
            decoder: the model.
        """
        return all((decoder if holder is None else holder).get(key) is value for holder, key, value in self._seen) and (
            all(address(array) == at for array, at in self._arrays)
        )


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
