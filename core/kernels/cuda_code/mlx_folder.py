"""Puts compiled code into the folder in which MLX looks before it compiles.

MLX asks for ``NAME.ptx`` (machine code, in spite of the name) and ``NAME.txt`` (a kernel's name and its symbol) in
``$MLX_PTX_CACHE_DIR``, or in ``mlx/VERSION/ptx`` of the system's temporary folder, and checks neither. So what is put
there comes from a checked store, and is written again where it differs.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from core.kernels.cuda_code.mlx_text import MLX_VERSION, Instance
from core.kernels.cuda_code.nvrtc import Code
from core.kernels.cuda_code.store import write_whole

_VARIABLE = "MLX_PTX_CACHE_DIR"


class Folders:
    """The folders where MLX may look in this process.

    Attributes:
        paths: one, or those of which one is it.
    """

    def __init__(self, paths: list[Path], ours: Path | None = None) -> None:
        self.paths = paths
        self._ours = ours

    @classmethod
    def choose(cls, cache: Path | None) -> Folders:
        """The user's folder; else one below ``cache``, which MLX is told of.

        MLX's own choice is lost when the machine starts anew, and belongs to whoever of all users came first. MLX may
        have looked before, so its own choice stays a candidate wherever it exists.
        """
        if chosen := os.environ.get(_VARIABLE):
            return cls([Path(chosen)])
        default = Path(tempfile.gettempdir()) / "mlx" / MLX_VERSION / "ptx"
        paths = [default] if default.is_dir() or cache is None else []
        if cache is None:
            return cls(paths)
        own = cache / f"mlx-{MLX_VERSION}"
        try:
            own.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError:
            return cls(paths or [default])
        os.environ[_VARIABLE] = str(own)
        return cls([*paths, own], own)

    @property
    def open(self) -> bool:
        """MLX has been told of a folder, and may not have read that yet."""
        return self._ours is not None

    def settle(self, found: int) -> None:
        """Keeps the folder in which MLX has looked, and takes the variable back, which is no child process's business.

        A child with another MLX would find code under the names that its own has.

        Args:
            found: place of the folder among ``paths``, counted from 1; 0 where MLX has looked in none of them.
        """
        if found:
            self.paths = [self.paths[found - 1]]
        if self._ours is not None and os.environ.get(_VARIABLE) == str(self._ours):
            del os.environ[_VARIABLE]
        self._ours = None


PROBE = Instance("corelm_probe", ("x",), ("out",), "out[0] = 0 * x[0];", "", ((mx.float32, True),), (mx.float32,))
"""A kernel that gives 0 where MLX compiles it."""


def probe_text(place: int) -> str:
    """A program in which the probe gives ``place``: what to put into a folder, to see whether MLX looks there."""
    return replace(PROBE, source=f"out[0] = {place};").text


def run_probe() -> int:
    """What the probe gives here; MLX looks for its code, or compiles it."""
    kernel: Any = mx.fast.cuda_kernel(
        name=PROBE.name, input_names=list(PROBE.input_names), output_names=["out"], source=PROBE.source
    )
    gpu = mx.Device(mx.gpu)
    arguments = {"output_shapes": [(32,)], "output_dtypes": [mx.float32], "stream": gpu}
    out = kernel(inputs=[mx.ones((32,), stream=gpu)], grid=(1, 1, 1), threadgroup=(1, 1, 1), **arguments)[0]
    return int(out.tolist()[0])


def hand_over(folders: list[Path], module: str, kernel: str, code: Code) -> bool:
    """Puts code where MLX will find it.

    Args:
        module, kernel: under which MLX asks for it.

    Returns:
        Whether it lies in at least one folder.
    """
    done = False
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # The name of the code last: MLX looks for it first.
            _put(folder / f"{module}.txt", f"{kernel}\t{code.symbol}\n".encode())
            _put(folder / f"{module}.ptx", code.cubin)
        except OSError:
            continue
        done = True
    return done


def _put(path: Path, data: bytes) -> None:
    with contextlib.suppress(OSError):
        if path.read_bytes() == data:
            return
    write_whole(path, data)
