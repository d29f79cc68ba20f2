"""Weight maps: how a checkpoint's tensors become a model's parameters, as data that runs both ways.

A map names, for each module (or bare parameter) of the model, where its tensors come from. Names are whole dotted paths
with ``{placeholders}`` whose ranges are known, so that a map expands to a finite table before any file is read. Knows
names only; shapes, dtypes and quantization are checked by the plan.
"""

from __future__ import annotations

import itertools
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import mlx.core as mx

from core.errors import PluginError, WeightsError

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_MAX_LEAVES = 2_000_000  # the largest public checkpoints have about 200,000 tensors
_SEGMENT = re.compile(r"[A-Za-z0-9_\-]+")


class Concat:
    """Parts whose output rows follow each other, in this order; the target is usually a ``core.nn.FusedLinear``.

    Rows commute with quantization along the input axis, so the rule covers ``weight``, ``scales``, ``biases`` and
    ``bias``.
    """

    def __init__(self, *parts: Source) -> None:
        self.parts = parts


class Stack:
    """One part for each value of the placeholder ``over``, stacked along a new first axis (experts)."""

    def __init__(self, part: Source, over: str) -> None:
        self.part = part
        self.over = over


Source = str | Concat | Stack


@dataclass(frozen=True)
class WeightMap:
    """What a plugin's ``weight_map`` returns.

    Attributes:
        rules: target → source. A target is the path of a module or of a parameter in the model; a source is a path in
            the checkpoint or an operation on sources. Where the target is a module, one rule covers all its tensors
            (``weight``, ``bias``, ``scales``, ``biases``).
        ranges: placeholder → the values it takes.
        ignored: tensor name pattern → why such a tensor is deliberately left unread. ``{placeholders}`` are allowed.
    """

    rules: Mapping[str, Source]
    ranges: Mapping[str, range] = field(default_factory=dict)
    ignored: Mapping[str, str] = field(default_factory=dict)

    def expand(self) -> list[Row]:
        """The finite table: every target with the concrete names of its sources.

        Raises:
            PluginError: a placeholder has no range, or a target or source is used twice.
            WeightsError: the config's sizes make the table longer than any checkpoint.
        """
        names = {target: list(dict.fromkeys(_PLACEHOLDER.findall(target))) for target in self.rules}
        size = sum(self._count(names[target]) * self._size(source) for target, source in self.rules.items())
        if size > _MAX_LEAVES:
            ranges = ", ".join(f"{len(values):,} of {{{name}}}" for name, values in self.ranges.items())
            raise WeightsError(
                f"the config asks for {size:,} matrices ({ranges})",
                expected=f"at most {_MAX_LEAVES:,}",
                hint="A number in config.json must be wrong: no model is that large.",
            )
        rows: list[Row] = []
        for target, source in self.rules.items():
            bindings = self._bindings(names[target])
            rows += [Row(self._fill(target, one), self._resolve(source, one)) for one in bindings]
        refuse_repeats("target", [row.target for row in rows])
        refuse_repeats("source", [leaf for row in rows for leaf in leaves(row.source)])
        return rows

    def expand_ignored(self) -> dict[str, str]:
        """Concrete name of every tensor that may be left unread → why."""
        expanded = {}
        for pattern, reason in self.ignored.items():
            for binding in self._bindings(list(dict.fromkeys(_PLACEHOLDER.findall(pattern)))):
                expanded[self._fill(pattern, binding)] = reason
        return expanded

    def _size(self, source: Source) -> int:
        """How many paths a source has for each binding of its target's placeholders."""
        if isinstance(source, Concat):
            return sum(self._size(part) for part in source.parts)
        if isinstance(source, Stack):
            return self._count([source.over]) * self._size(source.part)
        return 1

    def _count(self, names: list[str]) -> int:
        return math.prod(len(self.ranges.get(name, ())) for name in names)

    def _bindings(self, names: list[str]) -> Iterator[dict[str, int]]:
        for name in names:
            if name not in self.ranges:
                raise PluginError(
                    f"the weight map uses the placeholder {{{name}}} without a range",
                    expected=f"one of {', '.join(self.ranges) or 'none'}",
                )
        for values in itertools.product(*(self.ranges[name] for name in names)):
            yield dict(zip(names, values, strict=True))

    def _fill(self, pattern: str, binding: Mapping[str, int]) -> str:
        path = _PLACEHOLDER.sub(lambda match: str(binding[match[1]]), pattern)
        if not all(_SEGMENT.fullmatch(segment) for segment in path.split(".")):
            raise PluginError(
                f"the weight map has a malformed path {pattern!r}", expected="names joined by single dots"
            )
        return path

    def _resolve(self, source: Source, binding: Mapping[str, int]) -> Node:
        if isinstance(source, Concat):
            if not source.parts:
                raise PluginError("the weight map has a Concat of nothing")
            return Joined(tuple(self._resolve(part, binding) for part in source.parts))
        if isinstance(source, Stack):
            values = [one[source.over] for one in self._bindings([source.over])]
            if not values:
                raise PluginError(f"the weight map stacks over {{{source.over}}}, whose range is empty")
            return Stacked(tuple(self._resolve(source.part, {**binding, source.over: value}) for value in values))
        unbound = [name for name in _PLACEHOLDER.findall(source) if name not in binding]
        if unbound:
            raise PluginError(
                f"the weight map's source {source!r} uses {{{unbound[0]}}}, which neither its target nor a Stack binds"
            )
        return Leaf(self._fill(source, binding))


@dataclass(frozen=True, slots=True)
class Leaf:
    """One path in the checkpoint."""

    name: str


@dataclass(frozen=True, slots=True)
class Joined:
    """Parts concatenated along their output rows."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Stacked:
    """Parts stacked along a new first axis."""

    parts: tuple[Node, ...]


class Operation(ABC):
    """One tensor of a module, computed from others: a node that a plan puts where a map has a leaf.

    Maps have none; ``core/weights/operations.py`` and ``core/weights/imported.py`` have those that there are.

    Attributes:
        label: one word for it.
        role: which of the module's tensors this is (``weight``, ``scales``, ``biases``).
        finite: the sources themselves must be finite, because the results would hide it if they were not.
    """

    role: str
    finite: bool = False

    @property
    @abstractmethod
    def label(self) -> str: ...

    @property
    @abstractmethod
    def parts(self) -> tuple[Node, ...]:
        """What it reads."""

    @property
    @abstractmethod
    def key(self) -> Hashable:
        """Equal for the roles of one computation, so that it is done once."""

    @property
    def kept(self) -> mx.Dtype | None:
        """The dtype in which floats stay whatever the compute dtype, because that one would round them."""
        return None

    @abstractmethod
    def inputs(self, shape: tuple[int, ...]) -> list[tuple[tuple[int, ...] | None, tuple[str, ...]]]:
        """What each part must be for the result to have ``shape``: its shape (None: open), the dtypes it may have."""

    @abstractmethod
    def storage(self, found: str) -> str:
        """The result's dtype in a file of MLX's own format, where the first part has ``found``."""

    @abstractmethod
    def compute(self, *arrays: mx.array) -> dict[str, mx.array]:
        """Every role's tensor, from the parts."""

    def loss(self, *arrays: mx.array) -> mx.array | None:
        """The largest error of a weight that the caller has accepted and wants to know; None without one."""
        return None


Node = Leaf | Joined | Stacked | Operation


@dataclass(frozen=True, slots=True)
class Row:
    """One line of an expanded map."""

    target: str
    source: Node


def leaves(node: Node) -> list[str]:
    """Names of the checkpoint paths below a node, in order."""
    if isinstance(node, Leaf):
        return [node.name]
    names = [name for part in node.parts for name in leaves(part)]
    # What an operation reads of one computation's several results, that computation reads once.
    return list(dict.fromkeys(names)) if isinstance(node, Operation) else names


def with_suffix(node: Node, suffix: str) -> Node:
    """The same operation on the tensor ``suffix`` of each path."""
    if isinstance(node, Leaf):
        return Leaf(f"{node.name}.{suffix}")
    assert not isinstance(node, Operation)  # a plan's, made of what this returns
    return type(node)(tuple(with_suffix(part, suffix) for part in node.parts))


def each_leaf(node: Node, make: Callable[[Leaf], Node]) -> Node:
    """The same arrangement of what ``make`` says of each path."""
    if isinstance(node, Leaf):
        return make(node)
    assert not isinstance(node, Operation)  # those stand where maps have their leaves
    return replace(node, parts=tuple(each_leaf(part, make) for part in node.parts))


def joined_parts(node: Node) -> int | None:
    """How many parts the (only) concatenation in a node has; None without one."""
    if isinstance(node, Joined):
        return len(node.parts)
    return joined_parts(node.parts[0]) if isinstance(node, Stacked) else None


def select(node: Node, indices: tuple[int, ...]) -> Node:
    """The node with only these parts of its concatenation; a single part needs no concatenation."""
    if isinstance(node, Stacked):
        return Stacked(tuple(select(part, indices) for part in node.parts))
    assert isinstance(node, Joined)
    return node.parts[indices[0]] if len(indices) == 1 else Joined(tuple(node.parts[i] for i in indices))


def refuse_repeats(kind: str, names: list[str]) -> None:
    """
    Raises:
        PluginError: naming the first name that comes twice.
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise PluginError(f"the weight map uses the {kind} {name!r} twice", expected="each exactly once")
        seen.add(name)
