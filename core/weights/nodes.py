"""The source of a parameter as a tree: its leaves are tensors of the checkpoint, its inner nodes are operations on
them.

An expanded map has one tree for each target, whose leaves are paths of modules. A plan has one for each parameter,
whose leaves are names of tensors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace

import mlx.core as mx

from core.errors import PluginError


@dataclass(frozen=True, slots=True)
class Leaf:
    """One path in the checkpoint.

    Attributes:
        whole: the path is a tensor's whole name, without a further suffix.
        fused: it holds all parts of a fused projection.
    """

    name: str
    whole: bool = False
    fused: bool = False


@dataclass(frozen=True, slots=True)
class Joined:
    """Parts concatenated along their output rows."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Stacked:
    """Parts stacked along a new first axis."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Permuted:
    """Output rows of each head, reordered from rotary pairs (in the checkpoint) to the head's two halves."""

    part: Node
    heads: int

    @property
    def parts(self) -> tuple[Node]:
        """The one node below, as a tuple like that of every other node."""
        return (self.part,)


class Operation(ABC):
    """One tensor of a module, computed from others: a node of a plan in the place of a map's leaf.

    Maps have no operations. They are defined in ``core/weights/operations.py`` and ``core/weights/imported.py``.

    Attributes:
        label: one word for it.
        role: which of the module's tensors this is (``weight``, ``scales``, ``biases``).
        finite: check the sources for NaN and infinity, because the results would hide them.
    """

    role: str
    finite: bool = False

    @property
    @abstractmethod
    def label(self) -> str: ...

    @property
    @abstractmethod
    def parts(self) -> tuple[Node, ...]:
        """The nodes that it reads."""

    @property
    @abstractmethod
    def key(self) -> Hashable:
        """Equal for the roles of one computation, so that it is computed once."""

    @property
    def kept(self) -> mx.Dtype | None:
        """The dtype in which floats stay whatever the compute dtype is, because that one would round them."""
        return None

    @abstractmethod
    def inputs(self, shape: tuple[int, ...]) -> list[tuple[tuple[int, ...] | None, tuple[str, ...]]]:
        """What each part must be for the result to have ``shape``: its shape (None: any), and the dtypes it may
        have."""

    @abstractmethod
    def storage(self, found: str) -> str:
        """The result's dtype in a file of MLX's own format, where the first part has dtype ``found``."""

    @abstractmethod
    def compute(self, *arrays: mx.array) -> dict[str, mx.array]:
        """The tensors of all roles, computed from the parts."""

    def loss(self, *arrays: mx.array) -> mx.array | None:
        """The largest error of a weight that the caller has accepted; None if there is no error."""
        return None


Node = Leaf | Joined | Stacked | Permuted | Operation


@dataclass(frozen=True, slots=True)
class Row:
    """One line of an expanded map."""

    target: str
    source: Node


def leaves(node: Node) -> list[str]:
    """Names of the checkpoint paths below a node, in order."""
    return [leaf.name for leaf in iter_leaves(node)]


def iter_leaves(node: Node) -> Iterator[Leaf]:
    """The checkpoint paths below a node, in order."""
    if isinstance(node, Leaf):
        yield node
        return
    found = (leaf for part in node.parts for leaf in iter_leaves(part))
    # Roles of one computation share their sources, which are counted once.
    yield from dict.fromkeys(found) if isinstance(node, Operation) else found


def tensor_name(leaf: Leaf, role: str) -> str:
    """The tensor that is a module's ``role``.

    Raises:
        PluginError: a tensor without suffix can only be the weight.
    """
    if not leaf.whole:
        return f"{leaf.name}.{role}"
    if role != "weight":
        raise PluginError(
            f"the weight map names the whole tensor {leaf.name!r} for a module that also has {role!r}",
            hint="This layout has no place for it: quantized matrices and biases need names with suffixes.",
        )
    return leaf.name


def with_suffix(node: Node, role: str) -> Node:
    """The same tree, with each path replaced by the name of its ``role`` tensor."""
    return each_leaf(node, lambda leaf: Leaf(tensor_name(leaf, role)))


def each_leaf(node: Node, make: Callable[[Leaf], Node]) -> Node:
    """The same tree, with each leaf replaced by ``make(leaf)``."""
    if isinstance(node, Leaf):
        return make(node)
    if isinstance(node, Permuted):
        return replace(node, part=each_leaf(node.part, make))
    assert not isinstance(node, Operation)  # operations take the place of a map's leaves
    return replace(node, parts=tuple(each_leaf(part, make) for part in node.parts))


def joined_parts(node: Node) -> int | None:
    """How many parts the (only) concatenation in a node has; None without one."""
    if isinstance(node, Joined):
        return len(node.parts)
    return joined_parts(node.parts[0]) if isinstance(node, Stacked) else None


def is_fused(node: Node) -> bool:
    """Whether every path below a node holds all parts of a fused projection."""
    return all(leaf.fused for leaf in iter_leaves(node))


def select(node: Node, indices: tuple[int, ...]) -> Node:
    """The node with only these parts of its concatenation. A single part needs no concatenation."""
    if isinstance(node, Stacked):
        return Stacked(tuple(select(part, indices) for part in node.parts))
    assert isinstance(node, Joined)
    return node.parts[indices[0]] if len(indices) == 1 else Joined(tuple(node.parts[i] for i in indices))


def outer_operation(node: Node) -> Operation | None:
    """The operation on the first of a node's parts, if there is one; all parts have the same."""
    while not isinstance(node, Operation):
        if isinstance(node, Leaf):
            return None
        node = node.parts[0]
    return node


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
