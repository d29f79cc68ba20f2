"""Weight maps: how a checkpoint's tensors become a model's parameters, as data that can be applied in both directions.

A map names, for each module (or bare parameter) of the model, the sources of its tensors. Names are whole dotted paths
with ``{placeholders}`` whose ranges are given, so a map expands to a finite table before any file is read. Shapes,
dtypes and quantization are checked by the plan.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from core.errors import PluginError, WeightsError
from core.weights.nodes import Joined, Leaf, Node, Permuted, Row, Stacked, leaves, refuse_repeats

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_MAX_LEAVES = 2_000_000  # the largest public checkpoints have about 200,000 tensors
_SEGMENT = re.compile(r"[A-Za-z0-9_\-]+")
_BELOW = ".**"


class Concat:
    """Parts whose output rows are concatenated in this order; the target is usually a ``core.nn.FusedLinear``.

    Quantization groups lie along the input axis, so the rule covers ``weight``, ``scales``, ``biases`` and ``bias``.
    """

    def __init__(self, *parts: Source) -> None:
        self.parts = parts


class Stack:
    """One part for each value of the placeholder ``over``, stacked along a new first axis (experts)."""

    def __init__(self, part: Source, over: str) -> None:
        self.part = part
        self.over = over


class Whole:
    """One tensor by its whole name, where a checkpoint stores a module's weight without the suffix ``.weight``.

    Such a tensor has no place for ``scales`` or ``bias``, so its module must have neither.
    """

    def __init__(self, name: str) -> None:
        self.name = name


class Permute:
    """A projection of queries or keys, reordered from rotary pairs side by side to the two halves of each head.

    Mistral's own files, like Meta's, rotate the features (0, 1), (2, 3), … of a head; this framework, like
    transformers, rotates (0, d/2), (1, d/2 + 1), …. Only whole output rows move, so the rule is exact, covers
    ``weight``, ``scales``, ``biases`` and ``bias``, and does not touch the axis that quantization packs.

    Args:
        path: in the checkpoint.
        heads: of this projection; a key projection has fewer than the query's.
    """

    def __init__(self, path: str, heads: int) -> None:
        self.path = path
        self.heads = heads


class Fused:
    """One matrix of the checkpoint that holds all parts of a ``core.nn.FusedLinear``, in the same order."""

    def __init__(self, part: str | Whole) -> None:
        self.part = part


Source = str | Concat | Stack | Whole | Permute | Fused


@dataclass(frozen=True)
class WeightMap:
    """What a plugin's ``weight_map`` returns.

    Attributes:
        rules: target → source. A target is the path of a module or of a parameter in the model; a source is a path in
            the checkpoint or an operation on sources. Where the target is a module, one rule covers all its tensors
            (``weight``, ``bias``, ``scales``, ``biases``). A ``FusedLinear`` takes a ``Concat`` of its parts, or
            ``Fused`` where the checkpoint stores them as one matrix already.
        ranges: placeholder → the values it takes.
        ignored: tensor name pattern → why such a tensor is deliberately left unread. ``{placeholders}`` are allowed,
            and a last segment ``**`` stands for any further ones: ``vision_tower.**``.
    """

    rules: Mapping[str, Source]
    ranges: Mapping[str, range] = field(default_factory=dict)
    ignored: Mapping[str, str] = field(default_factory=dict)

    def expand(self) -> list[Row]:
        """The finite table: every target with the concrete names of its sources.

        Raises:
            PluginError: a placeholder has no range, or a target or source is used twice.
            WeightsError: the sizes in the config make the table longer than that of any real checkpoint.
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
        """Concrete name of every tensor that may be left unread → why; for ``reason_for``."""
        expanded = {}
        for pattern, reason in self.ignored.items():
            below = _BELOW if pattern.endswith(_BELOW) else ""
            for binding in self._bindings(list(dict.fromkeys(_PLACEHOLDER.findall(pattern)))):
                expanded[self._fill(pattern.removesuffix(_BELOW), binding) + below] = reason
        return expanded

    def renamed(self, rename: Callable[[str], str]) -> WeightMap:
        """The same map for a checkpoint with other names: ``rename`` is applied to every source path."""
        rules = {target: _renamed(source, rename) for target, source in self.rules.items()}
        return WeightMap(rules, self.ranges, {rename(pattern): why for pattern, why in self.ignored.items()})

    def _size(self, source: Source) -> int:
        """How many paths a source has for one assignment of its target's placeholders."""
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
        if isinstance(source, Whole):
            return Leaf(self._path(source.name, binding), whole=True)
        if isinstance(source, Fused):
            leaf = self._resolve(source.part, binding)
            assert isinstance(leaf, Leaf)
            return replace(leaf, fused=True)
        if isinstance(source, Permute):
            if source.heads < 1:
                problem = f"the weight map permutes {source.path!r}"
                raise PluginError(problem, expected="1 head or more", found=source.heads)
            return Permuted(Leaf(self._path(source.path, binding)), source.heads)
        return Leaf(self._path(source, binding))

    def _path(self, pattern: str, binding: Mapping[str, int]) -> str:
        unbound = [name for name in _PLACEHOLDER.findall(pattern) if name not in binding]
        if unbound:
            raise PluginError(
                f"the weight map's source {pattern!r} uses {{{unbound[0]}}}, which neither its target nor a Stack binds"
            )
        return self._fill(pattern, binding)


def _renamed(source: Source, rename: Callable[[str], str]) -> Source:
    if isinstance(source, str):
        return rename(source)
    if isinstance(source, Concat):
        return Concat(*(_renamed(part, rename) for part in source.parts))
    if isinstance(source, Stack):
        return Stack(_renamed(source.part, rename), source.over)
    if isinstance(source, Permute):
        return Permute(rename(source.path), source.heads)
    if isinstance(source, Whole):
        return Whole(rename(source.name))
    part = _renamed(source.part, rename)
    assert isinstance(part, str | Whole)
    return Fused(part)


def reason_for(tensor: str, ignored: Mapping[str, str]) -> str | None:
    """Why ``tensor`` is left unread, by its own name or that of a parent path; None if there is no reason."""
    reason, above = ignored.get(tensor), tensor
    while reason is None and "." in above:
        above = above.rpartition(".")[0]
        reason = ignored.get(above + _BELOW)
    return reason
