"""The peer's process: started, asked, and ended. Knows the protocol of ``peer_program``; never imports a peer."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from core.benchmark.measure import Run
from core.benchmark.shapes import Shape
from core.errors import BenchmarkError, UsageError

PEERS = {"mlx-lm": ("mlx_lm", "mlx_lm_side.py"), "transformers": ("transformers", "transformers_side.py")}
"""Name → the module that must be installed, and the file with its side."""


def check_peer(name: str) -> None:
    """Whether a peer is known and installed.

    Raises:
        UsageError: there is no such peer.
        BenchmarkError: it is not installed.
    """
    if name not in PEERS:
        raise UsageError(f"nothing is known of {name!r} to measure against", expected=", ".join(PEERS), found=name)
    if importlib.util.find_spec(PEERS[name][0]) is None:
        raise BenchmarkError(
            f"{name} is not installed beside core",
            where=sys.prefix,
            hint=f"pip install {name}; core needs it for this comparison only.",
        )


class PeerProcess:
    """A peer in a process of its own, waiting while we run.

    Args:
        name: one of ``PEERS``, installed.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  # closed by close()
        program, side = (Path(__file__).with_name(file) for file in ("peer_program.py", PEERS[name][1]))
        # -P: the files beside the program are core's, and must not shadow anything.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(program), str(side)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
        )
        try:
            self.version: str = self._ask(do="hello")["version"]
        except BaseException:
            self.close()
            raise

    def load(self, path: Path) -> tuple[float, int]:
        """Loads a checkpoint; returns seconds, and bytes that MLX held at most."""
        answer = self._ask(do="load", path=str(path))
        return answer["seconds"], answer["peak_memory"]

    def make(self, shape: Shape) -> None:
        """Makes a model of random weights."""
        self._ask(do="make", config=dict(shape.config), bits=shape.bits, group_size=shape.group_size)

    def run(self, ids: Sequence[int], generate: int) -> Run:
        """One generation."""
        return Run(**self._ask(do="run", prompt=list(ids), generate=generate))

    def batch(self, prompts: Sequence[Sequence[int]], generate: int, **more: Any) -> dict[str, Any]:
        """Many generations at once; ``more`` and the answer as of ``mlx_lm_side``."""
        return self._ask(do="batch", prompts=[list(ids) for ids in prompts], generate=generate, **more)

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self._process.wait()
        self._stderr.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, **task: Any) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        line = ""
        with contextlib.suppress(OSError):
            stdin.write(json.dumps(task) + "\n")
            stdin.flush()
            line = stdout.readline()
        if not line:
            said = "; ".join(self._last_words())
            raise BenchmarkError(f"{self.name} died while it was asked to {task['do']}", found=said or None)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise BenchmarkError(f"{self.name} failed to {task['do']}", found=answer["error"])
        return answer

    def _last_words(self) -> Iterator[str]:
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        yield from lines[-2:]
