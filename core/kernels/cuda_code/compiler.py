"""Compiles CUDA kernels once, keeps the machine code on disk, and puts it where MLX finds it."""

from __future__ import annotations

import functools
import hashlib
import os
import sys
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlx.core as mx

from core.kernels.cuda_code import mlx_folder, nvrtc
from core.kernels.cuda_code.mlx_folder import Folders
from core.kernels.cuda_code.mlx_text import MLX_VERSION, Instance
from core.kernels.cuda_code.store import CodeStore, cache_folder, digest

_THREADS = 8
_LONGEST_NAME = 245  # MLX spreads longer names over folders


class Compiler:
    """Compiles for one device.

    Args:
        architecture: such as ``sm_90a``.
        include: folders with CUDA's headers and MLX's.
        store: keeps what has been compiled.
        folders: where MLX looks for code.
    """

    def __init__(self, architecture: str, include: Iterable[str], store: CodeStore, folders: Folders) -> None:
        self._architecture = architecture
        self._include = tuple(include)
        self._folders = folders
        self._lock = threading.Lock()
        self._locating = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._codes: dict[str, str | None] = {}
        self._pool: ThreadPoolExecutor | None = None
        self.store = store
        self.failures: dict[str, str] = {}

    @property
    def prepared(self) -> tuple[str, ...]:
        """The modules, by the names that MLX has for them, that were asked for in this process."""
        with self._lock:
            return tuple(self._locks)

    def locate(self) -> None:
        """Finds out, once, in which of the folders MLX looks, where it is not the user who has chosen.

        A probe is put into each of them, and run: each gives another number.
        """
        with self._locating:
            if not self._folders.open:
                return
            found = 0
            try:
                for place, folder in enumerate(self._folders.paths, 1):
                    code = self._compiled(mlx_folder.PROBE, mlx_folder.probe_text(place))
                    mlx_folder.hand_over([folder], mlx_folder.PROBE.module, mlx_folder.PROBE.qualified, code)
                found = mlx_folder.run_probe()
                if not found:
                    self.failures["all kernels"] = "MLX does not look for compiled code where MLX 0.32.4 does"
            except Exception as error:  # whatever it is, MLX can still compile
                self.failures["the folder of compiled code"] = repr(error)
            self._folders.settle(found)

    def prepare(self, instance: Instance) -> str | None:
        """Makes sure that MLX finds the code of a kernel, so that it need not compile it.

        If another thread compiles it already, this waits for it. After an interrupt, the next call starts again.

        Returns:
            A digest of the code; None where MLX has to compile the kernel itself (``failures`` says why).
        """
        if not instance.known:
            return None
        self.locate()
        module = instance.module
        with self._lock_of(module):
            if module not in self._codes:
                self._codes[module] = self._try(instance)
            return self._codes[module]

    def begin(self, instance: Instance) -> None:
        """Starts ``prepare`` in a thread, unless it has been called before."""
        if not instance.known:
            return
        self.locate()
        with self._lock:
            if instance.module in self._locks:
                return
            self._locks[instance.module] = threading.Lock()
            if self._pool is None:
                self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="corelm-compile")
            self._pool.submit(self.prepare, instance)

    def cancel(self) -> None:
        """Drops what no thread has started yet: Python waits for its threads when it ends.

        ``prepare`` still compiles what was dropped.
        """
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)

    def _lock_of(self, module: str) -> threading.Lock:
        with self._lock:
            return self._locks.setdefault(module, threading.Lock())

    def _try(self, instance: Instance) -> str | None:
        try:
            return self._prepare(instance)
        except Exception as error:  # whatever it is, MLX can still compile the kernel
            self.failures[instance.function] = str(error) if isinstance(error, nvrtc.CompileError) else repr(error)
            return None

    def _prepare(self, instance: Instance) -> str | None:
        module = instance.module
        if len(module) > _LONGEST_NAME:
            self.failures[instance.function] = f"a name of {len(module)} characters, which MLX keeps elsewhere"
            return None
        code = self._compiled(instance, instance.text)
        if not mlx_folder.hand_over(self._folders.paths, module, instance.qualified, code):
            tried = ", ".join(map(str, self._folders.paths))
            self.failures[instance.function] = f"no folder of MLX's can be written: {tried}"
            return None
        return hashlib.sha256(code.cubin).hexdigest()

    def _compiled(self, instance: Instance, text: str) -> nvrtc.Code:
        """A kernel's code, from disk or compiled."""
        key = digest(instance.module, text)
        code = self.store.load(key)
        if code is None:
            code = nvrtc.compile_kernel(text, instance.qualified, self._architecture, self._include)
            self.store.save(key, code)
        return code


@functools.cache
def device_compiler() -> Compiler | None:
    """The compiler for MLX's CUDA device; None where NVRTC or CUDA's headers are absent."""
    info = mx.device_info(mx.Device(mx.gpu))
    major, minor = info.get("compute_capability_major"), info.get("compute_capability_minor")
    include = include_folders()
    try:
        compiler_version = nvrtc.version()
    except nvrtc.CompileError:
        return None
    if not isinstance(major, int) or not isinstance(minor, int) or include is None:
        return None
    architecture = f"sm_{major}{minor}{'a' if major >= 9 else ''}"
    environment = (
        f"device {info.get('device_name')}, {architecture}",
        f"driver {_driver()}",
        f"NVRTC {compiler_version}",
        f"MLX {MLX_VERSION}",
        f"headers {', '.join(include)}",
    )
    folder = cache_folder()
    return Compiler(architecture, include, CodeStore(folder, environment), Folders.choose(folder))


def include_folders() -> tuple[str, ...] | None:
    """The folders of MLX's headers and CUDA's, those that MLX would take; None where there are none."""
    mlx = Path(mx.__file__).resolve().parent / "include"
    if not (mlx / "mlx/backend/cuda/device/config.h").is_file():
        return None
    packages = Path(mx.__file__).resolve().parent.parent / "nvidia"
    toolkit = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    candidates = [*(packages / name / "include" for name in ("cu13", "cuda_runtime")), Path(toolkit) / "include"]
    for folder in candidates:
        if (folder / "cuda_bf16.h").is_file():
            return str(mlx), str(folder)
    return None


def _driver() -> str:
    try:
        return Path("/proc/driver/nvidia/version").read_text().partition("\n")[0].strip()
    except OSError:
        return f"unknown, on {sys.platform}"
