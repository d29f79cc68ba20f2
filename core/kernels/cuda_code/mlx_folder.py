"""Puts compiled code into the folder in which MLX looks before it compiles.

MLX asks for ``NAME.ptx`` (machine code, in spite of the name) and ``NAME.txt`` (a kernel's name and its symbol) in
``$MLX_PTX_CACHE_DIR``, or in ``mlx/VERSION/ptx`` of the system's temporary folder, and checks neither. So what is put
there comes from a checked store, and is written again where it differs.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from core.kernels.cuda_code.mlx_text import MLX_VERSION
from core.kernels.cuda_code.nvrtc import Code
from core.kernels.cuda_code.store import write_whole

_VARIABLE = "MLX_PTX_CACHE_DIR"


def choose_folder(cache: Path | None) -> list[Path]:
    """The folders where MLX may look in this process.

    Where the user has chosen none, MLX is given one below ``cache``: MLX's own choice is lost when the machine starts
    anew, and belongs to whoever of all users came first. MLX may have read the variable before, so its own choice stays
    a candidate wherever it exists.
    """
    if chosen := os.environ.get(_VARIABLE):
        return [Path(chosen)]
    default = Path(tempfile.gettempdir()) / "mlx" / MLX_VERSION / "ptx"
    folders = [default] if default.is_dir() or cache is None else []
    if cache is not None:
        own = cache / f"mlx-{MLX_VERSION}"
        with contextlib.suppress(OSError):
            own.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.environ[_VARIABLE] = str(own)
            folders.append(own)
    return folders


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
