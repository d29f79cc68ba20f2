"""Where this process runs: versions, device, and the environment variables that change what core does."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from dataclasses import dataclass

from packaging.requirements import Requirement

import core
from core.blas import VARIABLE as BLAS_VARIABLE
from core.errors import InstallationError
from core.installation import check_mlx, installed
from core.registry.choose import OVERRIDE_VARIABLE
from core.registry.claim import BLOCK_VARIABLE
from core.registry.requirement import DISTRIBUTION

_VARIABLES = (BLAS_VARIABLE, BLOCK_VARIABLE, "CORE_CPU", "CORE_KERNELS", "CORE_KERNEL_CACHE", OVERRIDE_VARIABLE)


@dataclass(frozen=True)
class Environment:
    """What a report about a machine begins with. ``variables`` holds those that are set."""

    core: str
    plugin_api: str
    mlx: str
    python: str
    system: str
    device: str
    variables: dict[str, str]


@dataclass(frozen=True)
class Dependency:
    """A package that core needs: ``version`` is None where it is absent, ``wanted`` the range where it is outside."""

    name: str
    version: str | None
    wanted: str | None = None

    def __str__(self) -> str:
        state = f"{self.name} {self.version or 'is not installed'}"
        return state if self.wanted is None else f"{state} (needs {self.wanted})"


def environment() -> Environment:
    """The environment of this process."""
    return Environment(
        core=core.__version__,
        plugin_api=core.PLUGIN_API,
        mlx=installed().get("mlx", "(not installed)"),
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        device=_device(),
        variables={name: os.environ[name] for name in _VARIABLES if os.environ.get(name)},
    )


def _device() -> str:
    try:
        check_mlx()
    except InstallationError:
        return "none, as MLX cannot be imported"
    from core.device import describe

    return describe()


def dependencies() -> list[Dependency]:
    """The packages that core asks for, extras aside, and whether they are what it asks for; then MLX's libraries."""
    try:
        lines = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found = []
    for requirement in map(Requirement, lines):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            found.append(Dependency(requirement.name, None, str(requirement.specifier) or "any version"))
            continue
        fits = requirement.specifier.contains(version, prereleases=True)
        found.append(Dependency(requirement.name, version, None if fits else str(requirement.specifier)))
    backends = [Dependency(name, version) for name, version in installed().items() if name != "mlx"]
    return found + backends
