"""Finds out why MLX cannot be imported, and which command installs what is missing."""

from __future__ import annotations

import ctypes
import importlib.metadata
import sys

from core.errors import InstallationError

BACKENDS = {"mlx-cpu": "cpu", "mlx-cuda-12": "cuda12", "mlx-cuda-13": "cuda13"}
"""Packages with MLX's library on Linux → the extra that installs it. All of them write the same files."""
_OLDEST_CUDA = 12


def check_mlx() -> None:
    """Imports MLX.

    Raises:
        InstallationError: it cannot be imported; the original error is the cause.
    """
    try:
        import mlx.core  # noqa: F401
    except ImportError as error:
        raise InstallationError("MLX cannot be imported", found=str(error), hint=_hint()) from error


def installed() -> dict[str, str]:
    """The packages of MLX that are installed, with their versions."""
    found = {}
    for name in ("mlx", "mlx-metal", *BACKENDS):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def unused_gpu() -> str | None:
    """Why MLX computes on the CPU although its CUDA package is installed; None if that is not the case."""
    import mlx.core as mx

    cuda = {13: "mlx-cuda-13", 12: "mlx-cuda-12"}
    wanted = next((major for major, name in cuda.items() if name in installed()), None)
    if wanted is None or mx.cuda.is_available():
        return None
    version = driver()
    if version is None:
        why = "no NVIDIA driver is found"
    elif version // 1000 < wanted:
        why = (
            f"the NVIDIA driver is for CUDA {_spelled(version)}, and it needs one for CUDA {wanted}: update the driver"
        )
    else:
        why = "MLX finds no GPU that it can use: nvidia-smi shows which there are"
    return f"{cuda[wanted]} is installed, but computes on the CPU: {why}"


def conflict() -> str | None:
    """What is wrong with the set of MLX's packages, even if MLX can be imported; None if nothing is."""
    found = installed()
    backends = [name for name in BACKENDS if name in found]
    if len(backends) > 1:
        return (
            f"several libraries of MLX are installed, and write the same files: {', '.join(backends)}. Keep one: "
            f"pip uninstall mlx {' '.join(backends)}, then {_choice()}"
        )
    if len(set(found.values())) > 1:
        versions = ", ".join(f"{name} {version}" for name, version in found.items())
        return f"the packages of MLX are not of one version, {versions}: pip install --force-reinstall {_pinned(found)}"
    return None


def _hint() -> str:
    found = installed()
    backends = [name for name in BACKENDS if name in found]
    wrong = conflict()
    if wrong is not None:
        return wrong[0].upper() + wrong[1:]
    if not sys.platform.startswith("linux"):
        return "Install it again: pip install --force-reinstall mlx" if found else "Install it: pip install mlx"
    if not backends:
        return f"On Linux, MLX's library comes with an extra of corelm: {_choice()}"
    if backends != ["mlx-cpu"] and driver() is None:
        return (
            f"{backends[0]} is installed, and there is no NVIDIA driver here. To compute on the CPU: "
            f'pip uninstall mlx {backends[0]}, then pip install "corelm[cpu]"'
        )
    return f"Install it again: pip install --force-reinstall {_pinned(found)}"


def _choice() -> str:
    """Which extra to install, for this machine's NVIDIA driver."""
    cuda = driver()
    if cuda is None:
        return 'pip install "corelm[cpu]", or "corelm[cuda13]" with an NVIDIA GPU (no NVIDIA driver is found here)'
    version = _spelled(cuda)
    if cuda // 1000 < _OLDEST_CUDA:
        return (
            f'pip install "corelm[cpu]"; the NVIDIA driver here is for CUDA {version}, '
            f'and "corelm[cuda12]" needs one for CUDA {_OLDEST_CUDA} or later'
        )
    extra = "cuda13" if cuda >= 13000 else "cuda12"
    return f'pip install "corelm[{extra}]" (the NVIDIA driver here is for CUDA {version}), or "corelm[cpu]" for the CPU'


def driver() -> int | None:
    """The CUDA version that the NVIDIA driver supports, as 1000 × major + 10 × minor; None without a driver."""
    version = ctypes.c_int()
    try:
        failed = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    return None if failed else version.value


def _spelled(cuda: int) -> str:
    return f"{cuda // 1000}.{cuda % 1000 // 10}"


def _pinned(found: dict[str, str]) -> str:
    """MLX's packages at the version of its Python half, with their extra, so that pip also installs their
    requirements."""
    extras = ",".join(extra for name, extra in BACKENDS.items() if name in found)
    name = f"mlx[{extras}]" if extras else "mlx"
    return f'"{name}=={found["mlx"]}"' if "mlx" in found else f'"{name}"'
