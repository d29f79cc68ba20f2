"""Checks of the weight maps: they relate tensors and parameters one to one, in every layout and in both directions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx

import core
from core.checkpoint import open_checkpoint
from core.errors import CoreError, UsageError
from core.layouts import LAYOUTS
from core.nn import FusedLinear
from core.testing.base import KitBase
from core.testing.comparing import demand
from core.testing.headers import write_headers
from core.testing.subject import Subject
from core.weights.invert import inverses
from core.weights.nodes import Joined, Node, Stacked, leaves
from core.weights.tree import all_arrays, find


class WeightChecks(KitBase):
    """Checks of the plugin's ``weight_map``, for every layout that it has."""

    def test_layouts(self) -> None:
        """A failure means that the plugin has other weight maps than its tests expect, or none for ``hf``."""
        found = tuple(self.subject.maps)
        wanted = self.layouts
        if wanted is None:
            demand(found, f"weight_map gives no map for any layout, expected at least one of {', '.join(LAYOUTS)}")
        else:
            demand(set(found) == set(wanted), f"weight_map has the layouts {found}, expected {wanted}")

    def test_weight_map_is_a_bijection(self) -> None:
        """A failure means that a parameter has no source, a tensor is used twice, or numbers are lost.

        The model is written by the map run backwards, loaded, and compared number for number.
        """
        subject = self.subject
        for layout, weight_map in subject.maps.items():
            found = inverses(subject.model, weight_map)
            forgotten = sorted(set(subject.arrays) - set(found))
            demand(not forgotten, f"layout {layout!r} has no rule for the parameters {forgotten}")
            foreign = sorted(set(found) - set(subject.arrays))
            demand(not foreign, f"layout {layout!r} has rules for parameters that the model does not have: {foreign}")
            names = [name for inverse in found.values() for name in inverse.names]
            doubled = sorted({name for name in names if names.count(name) > 1})
            demand(not doubled, f"layout {layout!r} uses the tensors {doubled} twice")
            loaded = subject.load(subject.checkpoint(layout), dtype=mx.float32)
            for path, array in all_arrays(loaded.model).items():
                demand(
                    mx.array_equal(array, subject.arrays[path]).item(),
                    f"layout {layout!r}: the parameter {path!r}, written and loaded again, has other numbers",
                )

    def test_weight_map_keeps_parts_in_order(self) -> None:
        """A failure means that parts with different names are joined in another order than in the module.

        The parts of a ``Concat`` must have the order of the ``FusedLinear`` (gate before up), and those of a ``Stack``
        must count up. A wrong order changes no shape.
        """
        for layout, weight_map in self.subject.maps.items():
            for row in weight_map.expand():
                module = find(self.subject.model, row.target)
                for joined in _nodes(row.source, Joined):
                    parts = list(module.parts) if isinstance(module, FusedLinear) else []
                    names = [leaves(part)[0].rpartition(".")[2] for part in joined.parts]
                    demand(
                        sorted(names) != sorted(parts) or names == parts,
                        f"layout {layout!r} fills {row.target!r}, whose parts are {parts}, with {names}",
                    )
                for stacked in _nodes(row.source, Stacked):
                    numbers = [[int(n) for n in re.findall(r"\d+", leaves(part)[0])] for part in stacked.parts]
                    demand(numbers == sorted(numbers), f"layout {layout!r} stacks {row.target!r} in another order")

    def test_plan_closes_from_headers(self) -> None:
        """A failure means that a plan needs more than headers, or that a layout is not recognised.

        The headers of a checkpoint in each layout are planned. Then one tensor is removed, and an unknown one added:
        the plan must report both.
        """
        subject = self.subject
        for layout in subject.maps:
            shapes = {name: tuple(array.shape) for name, array in subject.tensors(layout).items()}
            plan = subject.plan(self._headers(layout, "whole", shapes))
            try:
                plan.check()
            except CoreError as error:
                raise AssertionError(f"layout {layout!r}: the plan does not close\n  {error}") from error
            filled = sorted(entry.parameter for entry in plan.entries)
            demand(filled == sorted(subject.arrays), f"layout {layout!r}: the plan fills {filled}")
            names = set(shapes)
            same = plan.layout == layout or set(subject.tensors(plan.layout)) == names
            demand(same, f"a checkpoint in the layout {layout!r} is taken for {plan.layout!r}")
            lost = sorted(shapes)[0]
            del shapes[lost]
            plan = subject.plan(self._headers(layout, "damaged", shapes | {"no.such.tensor": (3,)}))
            demand(lost in plan.missing, f"layout {layout!r}: the plan does not miss the tensor {lost!r}")
            strange = "no.such.tensor" in plan.unexpected
            demand(strange, f"layout {layout!r}: the plan accepts a tensor 'no.such.tensor'; see the map's `ignored`")
        if self.reference is not None:
            subject.plan(self.expected.path).check()

    def test_save_load_save_is_stable(self) -> None:
        """A failure means that a saved model is not the one that was loaded: tensors or config differ, byte by byte."""
        subject = self.subject
        for layout in subject.maps:
            first = subject.checkpoint(layout)
            second, third = subject.directory / f"{layout}-second", subject.directory / f"{layout}-third"
            try:
                _save(subject, first, second, layout)
            except UsageError:  # a params.json can only describe Mistral's models
                demand(layout == "mistral", f"layout {layout!r}: what was loaded cannot be saved")
                continue
            _save(subject, second, third, layout)
            for one, other in ((first, second), (second, third)):
                before, after = _stored(one), _stored(other)
                demand(before.keys() == after.keys(), f"layout {layout!r}: {sorted(before.keys() ^ after.keys())}")
                for name, array in before.items():
                    same = array.dtype == after[name].dtype and mx.array_equal(array, after[name]).item()
                    demand(same, f"layout {layout!r}: the tensor {name!r} is saved with other numbers")
            config = open_checkpoint(second).config_name
            demand(
                (second / config).read_bytes() == (third / config).read_bytes(),
                f"layout {layout!r}: {config} changes when it is saved again",
            )

    def _headers(self, layout: str, name: str, shapes: dict[str, tuple[int, ...]]) -> Path:
        directory = self.subject.directory / f"headers-{layout}-{name}"
        write_headers(directory, shapes)
        self.subject.write_config(directory)
        return directory


def _nodes(node: Node, kind: type[Joined] | type[Stacked]) -> Iterator[Joined | Stacked]:
    if isinstance(node, kind):
        yield node
    for part in getattr(node, "parts", ()):
        yield from _nodes(part, kind)


def _save(subject: Subject, source: Path, destination: Path, layout: str) -> None:
    core.save(subject.load(source, dtype=mx.float32), destination, layout=layout)


def _stored(directory: Path) -> dict[str, mx.array]:
    found: dict[str, mx.array] = {}
    for shard in open_checkpoint(directory).shards:
        arrays = mx.load(str(directory / shard))
        assert isinstance(arrays, dict)
        found |= arrays
    return found
