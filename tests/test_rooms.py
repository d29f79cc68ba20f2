"""Rooms of core import those below them alone, and no module is in a circle: CONTRIBUTING.md says the order."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter

import pytest

from tests.registry.conftest import ROOT

BETWEEN_ROOMS = {
    ("core.hookspecs", "core.loading"): "a hook's parameter has the type of a load's report",
    ("core.language_model.model", "core.loading"): "the type of a load's report, which a model holds",
    ("core.nn.decoder", "core.cpu_pass.forward"): "imported at the first step, where there is a CPU library",
}
"""Imports that go up, and why. No more than ten."""

WITHIN_ROOMS = {
    ("core.generation.processors.stage", "core.generation.processors.dry"): "types of what a stage may hold",
    ("core.generation.processors.stage", "core.generation.processors.penalties"): "types of what a stage may hold",
    ("core.generation.sampling", "core.generation.processors.custom"): "the type of the user's own processors",
    ("core.kernels.fused", "core.kernels.kernel"): "the type of what it fuses",
    ("core.kernels.registry", "core.kernels.kernel"): "the type of what it registers",
    ("core.kernels.verification", "core.kernels.fused"): "the type of what it verifies",
}
"""Imports for type checkers alone, whose modules also need each other the other way round."""


def modules() -> dict[str, str]:
    """Name → source, of every module of core."""
    found = {}
    for file in (ROOT / "core").rglob("*.py"):
        parts = file.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file.read_text(encoding="utf-8")
    return found


MODULES = modules()


def imported(source: str) -> Iterator[str]:
    """Modules of core that a source imports anywhere: at once, late, or for type checkers."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module in MODULES:
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name in MODULES else node.module for name in names)


IMPORTS = {name: {other for other in imported(source) if other != name} for name, source in MODULES.items()}


def room(module: str) -> str:
    return ".".join(module.split(".")[:2])


def order() -> list[str]:
    """The rooms in CONTRIBUTING.md's table, from the bottom to the top."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    block = text.partition("From the bottom to the top:\n\n```\n")[2].partition("```")[0]
    return ["core" if name == "core" else f"core.{name}" for name in re.findall(r"\w+", block)]


def test_the_order_names_every_room_once() -> None:
    assert sorted(order()) == sorted({room(name) for name in MODULES})


def test_rooms_import_what_is_below_them() -> None:
    height = {name: at for at, name in enumerate(order())}
    upwards = {
        (name, other)
        for name, others in IMPORTS.items()
        for other in others
        if room(name) != room(other) and height[room(other)] > height[room(name)]
    }
    assert upwards == set(BETWEEN_ROOMS), "an import goes up, or one that did has gone"


def test_no_module_is_in_a_circle() -> None:
    allowed = {**BETWEEN_ROOMS, **WITHIN_ROOMS}
    graph = {name: {other for other in others if (name, other) not in allowed} for name, others in IMPORTS.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))
    for name, other in allowed:
        assert other in IMPORTS[name], f"{name} does not import {other} any more"
