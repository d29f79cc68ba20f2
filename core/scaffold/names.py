"""The names of a package for a ``model_type``: distribution, module, classes, and the range of core that it
requires."""

from __future__ import annotations

import re
from dataclasses import dataclass

from core.errors import UsageError
from core.registry.claim import normalise
from core.registry.requirement import DISTRIBUTION

_TYPE = re.compile(r"[A-Za-z](?:[A-Za-z0-9._-]{0,38}[A-Za-z0-9])?")
_RELEASE = re.compile(r"(\d+)\.(\d+)")


@dataclass(frozen=True)
class Names:
    """The names of one package, for ``qwen2.5-vl``: ``corelm-qwen2-5-vl``, ``corelm_qwen2_5_vl``, ``Qwen25Vl``.

    Attributes:
        model_type: the claim, exactly as in ``config.json``.

    Raises:
        UsageError: the type cannot be a package's name.
    """

    model_type: str

    def __post_init__(self) -> None:
        if not _TYPE.fullmatch(self.model_type):
            raise UsageError(
                f"{self.model_type!r} is not a model_type that a package can be named after",
                expected="up to 40 ASCII letters, digits, '.', '_' and '-', from a letter to a letter or digit",
            )

    @property
    def distribution(self) -> str:
        """The package's name for pip."""
        return f"{DISTRIBUTION}-{normalise(self.model_type)}"

    @property
    def module(self) -> str:
        """The package's name for ``import``."""
        return self.distribution.replace("-", "_")

    @property
    def prefix(self) -> str:
        """The beginning of its classes' names."""
        return "".join(self._words)

    @property
    def title(self) -> str:
        """Its name in sentences."""
        return " ".join(self._words)

    @property
    def entry_point(self) -> str:
        """The claim as a key of TOML, quoted if needed, because a dot would mean a nested table."""
        return f'"{self.model_type}"' if "." in self.model_type else self.model_type

    @property
    def _words(self) -> list[str]:
        return [word[0].upper() + word[1:] for word in normalise(self.model_type).split("-")]


def requirement(version: str) -> str:
    """The range of core that a plugin written for ``version`` requires: up to the next plugin API."""
    match = _RELEASE.match(version)
    assert match is not None, version
    major, minor = int(match[1]), int(match[2])
    lowest = match[0] if version.replace(".", "").isdecimal() else version  # 0.2 is above 0.2rc1
    return f"{DISTRIBUTION}>={lowest},<{f'0.{minor + 1}' if major == 0 else major + 1}"
