"""A mutant: a built-in plugin with one mistake in it, and what the kit says of it.

Knows how plugins are put together from parts; the mistakes are in the files beside this one.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import mlx.nn as nn
import pytest

import plugins.mistral
import plugins.mixtral
from core import hookimpl
from core.registry.contract import HOOKS
from core.testing import ArchitectureTests
from tests.fixtures import oracle
from tests.fixtures.layouts import config_of

DATA = Path(__file__).parent / "data"
BASES: Mapping[str, ModuleType] = {"mistral": plugins.mistral, "mixtral": plugins.mixtral}
REFERENCES = {"mistral": DATA / "mistral", "mixtral": oracle("mixtral_swa8")}
CHECKS = [name for name, _ in inspect.getmembers(ArchitectureTests, inspect.isfunction) if name.startswith("test_")]
AGAINST_REFERENCE = frozenset(
    name for name in CHECKS if name.startswith("test_reference") or name == "test_defaults_are_the_references"
)


class Plugin:
    """An object with the hooks of a built-in plugin, of which some are replaced."""

    def __init__(self, base: str, **hooks: Callable[..., Any]) -> None:
        for name in HOOKS:
            if name not in hooks and hasattr(BASES[base], name):
                setattr(self, name, getattr(BASES[base], name))
        for name, function in hooks.items():
            setattr(self, name, hookimpl(function))


@dataclass(frozen=True)
class Mutant:
    """One mistake.

    Attributes:
        name: what the mistake is.
        plugin: that makes it.
        by: a check that catches it.
        base: the built-in that it was made of.
        config: keys that differ from those of the base's reference; with any, the reference is left out.
        native: the reference is in Mistral's own layout.
        around: what must be true while it is checked.
    """

    name: str
    plugin: Plugin
    by: str
    base: str = "mistral"
    config: Mapping[str, Any] = field(default_factory=dict)
    native: bool = False
    around: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext

    @property
    def needs_reference(self) -> bool:
        """Whether only another implementation's numbers tell that it is wrong."""
        return self.by in AGAINST_REFERENCE

    def kit(self, native: Path, *, reference: bool) -> ArchitectureTests:
        """The kit for this plugin.

        Args:
            native: the reference of the base in Mistral's own layout.
            reference: whether the kit is given a reference.
        """
        where = native if self.native else REFERENCES[self.base]
        settings = {
            "config": {**config_of(REFERENCES[self.base]), **self.config},
            "reference": where if reference and not self.config else None,
            "plugin": self.plugin,
        }
        kit: ArchitectureTests = type("Mutant", (ArchitectureTests,), settings)()
        return kit


def failures(kit: ArchitectureTests, checks: list[str]) -> Iterator[tuple[str, Exception]]:
    """Those of the checks that fail, and how."""
    for name in checks:
        try:
            getattr(kit, name)()
        except pytest.skip.Exception:
            continue
        except Exception as error:  # pytest takes any for a failure
            yield name, error


def blocks_with(base: str, change: Callable[[nn.Module, Any], None]) -> Callable[..., nn.Module]:
    """A hook ``build_block`` whose block is changed after it was built."""

    def build_block(config: Any) -> nn.Module:
        block: nn.Module = BASES[base].build_block(config)
        change(block, config)
        return block

    return build_block
