"""``PeerProcess``: starts a peer's process, sends it tasks, and ends it, with the protocol of ``peer_program``."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from core.benchmark.cores import usable_cores
from core.benchmark.measure import Run
from core.benchmark.peer_kinds import check_peer
from core.benchmark.shapes import Shape
from core.errors import BenchmarkError


class PeerProcess:
    """A peer in a process of its own. It waits while our side runs, and may use as many cores as we may.

    Args:
        name: one of ``PEERS``, installed; after a colon, the format of its weights.

    Attributes:
        version: of its package.
        weights: the format of its weights; None if it is the same as ours.

    Raises:
        UsageError, BenchmarkError: as for ``check_peer``, or the peer fails to start.
    """

    def __init__(self, name: str) -> None:
        self.name, self._named = name, check_peer(name)
        self.weights: str | None = None
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  # closed by close()
        self._folder = tempfile.TemporaryDirectory(prefix="corelm-peer-")  # for the files that the peer writes
        program, side = (Path(__file__).parent / file for file in ("peer_program.py", self._named.kind.side))
        # -P: the modules beside the program are core's, and must not hide other packages.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(program), str(side)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env=os.environ | {"TMPDIR": self._folder.name, "TEMP": self._folder.name},
        )
        try:
            self.version: str = self._ask(do="hello", threads=usable_cores())["version"]
        except BaseException:
            self.close()
            raise

    @property
    def reads_floats(self) -> bool:
        """Whether it can only load checkpoints of floats in Hugging Face's layout."""
        return bool(self._named.kind.formats)

    def load(self, path: Path, bits: frozenset[int] = frozenset()) -> tuple[float, int]:
        """Loads a checkpoint; returns the seconds, and the peer's peak memory in bytes.

        Args:
            path: of the checkpoint.
            bits: of our quantized matrices.
        """
        self.weights = self._named.format_beside(bits)
        answer = self._ask(do="load", path=str(path), format=self.weights)
        return answer["seconds"], answer["peak_memory"]

    def make(self, shape: Shape) -> None:
        """Makes a model of random weights."""
        self.weights = self._named.format_beside(frozenset() if shape.bits is None else frozenset({shape.bits}))
        self._ask(
            do="make",
            config=dict(shape.config),
            bits=shape.bits,
            group_size=shape.group_size,
            format=self.weights,
        )

    def run(self, ids: Sequence[int], generate: int) -> Run:
        """One generation."""
        return Run(**self._ask(do="run", prompt=list(ids), generate=generate))

    def batch(self, prompts: Sequence[Sequence[int]], generate: int, **more: Any) -> dict[str, Any]:
        """Many generations at once; ``more`` and the result are those of ``mlx_lm_side``."""
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
        self._folder.cleanup()

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
