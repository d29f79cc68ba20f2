"""The attributes that a subclass of the kit may set, and the subject that all of its checks share."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import mlx.core as mx
import mlx.nn as nn
import pytest

from core.errors import UsageError
from core.language_model import LanguageModel
from core.testing.reference_data import Reference
from core.testing.subject import Subject
from core.testing.weights import randomise

_T = TypeVar("_T")


class KitBase:
    """Attributes of the kit; ``ArchitectureTests`` documents them."""

    config: ClassVar[Mapping[str, Any] | Path | str | None] = None
    reference: ClassVar[Path | str | None] = None
    plugin: ClassVar[Any] = None
    layouts: ClassVar[tuple[str, ...] | None] = None
    inert: ClassVar[frozenset[str] | set[str]] = frozenset()
    fixed_epsilons: ClassVar[frozenset[str] | set[str]] = frozenset()
    tolerance: ClassVar[float] = 2e-5
    reference_tolerance: ClassVar[float] = 3e-5
    quantization_bound: ClassVar[float] = 0.1
    order_matters: ClassVar[bool] = True

    @staticmethod
    def initialise(model: nn.Module) -> None:
        """Gives the parameters random values. Override it if some must lie in a certain range."""
        randomise(model)

    @property
    def raw(self) -> dict[str, Any]:
        """The config under test, as parsed."""
        return self._once("_raw", self._read_config)

    @property
    def subject(self) -> Subject:
        """The architecture under test, built once for all checks of a class."""
        return self._once("_subject", lambda: Subject(self.raw, self.plugin, self.initialise))

    @property
    def expected(self) -> Reference:
        """The reference. Without one, the check is skipped."""
        path = self.reference
        if path is None:
            pytest.skip("no reference: set `reference` to what `python -m core.testing.reference` writes")
        return self._once("_expected", lambda: Reference.read(Path(path)))

    @property
    def reference_model(self) -> LanguageModel:
        """The reference's checkpoint, loaded in float32."""
        return self._once("_model", lambda: self.subject.load(self.expected.path, dtype=mx.float32))

    def _read_config(self) -> dict[str, Any]:
        given = self.config
        if isinstance(given, Mapping):
            return dict(given)
        if given is None:
            if self.reference is None:
                name = type(self).__name__
                raise UsageError(f"{name} sets neither config nor reference", hint="Give it a tiny config.json.")
            return self.expected.config
        path = Path(given)
        parsed: dict[str, Any] = json.loads((path / "config.json" if path.is_dir() else path).read_text())
        return parsed

    def _once(self, name: str, make: Callable[[], _T]) -> _T:
        """The result of ``make`` from its first call for this class; pytest makes an instance for each check."""
        kit = type(self)
        if name not in vars(kit):
            setattr(kit, name, make())
        found: _T = vars(kit)[name]
        return found
