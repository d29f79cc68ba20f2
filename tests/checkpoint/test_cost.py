"""What opening costs: headers are read, and nothing else; hostile headers are refused before they are built."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from core.checkpoint import open_checkpoint

from .sparse import mixtral_tensors, write_mixtral_8x7b


def test_mixtral_8x7b_is_described_in_full(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_mixtral_8x7b(tmp_path / "mixtral"))
    assert len(checkpoint.shards) == 19
    assert {name: (info.dtype, list(info.shape)) for name, info in checkpoint.tensors.items()} == dict(
        mixtral_tensors()
    )
    assert sum(info.nbytes for info in checkpoint.tensors.values()) == 93_405_585_408


def test_no_byte_past_a_header_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file that is opened is wrapped, and counts what is read from it."""
    directory = write_mixtral_8x7b(tmp_path / "mixtral")
    read: dict[str, int] = {}
    path_open = Path.open

    def counting_open(path: Path, *args, **kwargs):
        file = path_open(path, *args, **kwargs)
        file_read = file.read

        class Counting:
            def __getattr__(self, name: str):
                return getattr(file, name)

            def __enter__(self):
                return self

            def __exit__(self, *exc: object) -> None:
                file.close()

            def read(self, count: int = -1) -> bytes:
                data = file_read(count)
                read[path.name] = read.get(path.name, 0) + len(data)
                return data

        return Counting()

    monkeypatch.setattr(Path, "open", counting_open)
    checkpoint = open_checkpoint(directory)
    headers = {
        shard: min(i.start for i in checkpoint.tensors.values() if i.shard == shard) for shard in checkpoint.shards
    }
    index = (directory / "model.safetensors.index.json").stat().st_size
    assert read == {**headers, "model.safetensors.index.json": index}


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the kernel's count of bytes read is Linux's")
def test_the_kernel_counts_no_more_than_headers_and_index(tmp_path: Path) -> None:
    """Whatever the implementation: the bytes that system calls returned, and page faults of mapped files."""
    directory = write_mixtral_8x7b(tmp_path / "mixtral")

    def returned() -> int:
        return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])

    checkpoint = open_checkpoint(directory)
    before = returned()
    own = returned() - before  # what asking costs
    before = returned()
    checkpoint.tensors  # noqa: B018
    used = returned() - before - own
    headers = sum(min(i.start for i in checkpoint.tensors.values() if i.shard == shard) for shard in checkpoint.shards)
    index = (directory / "model.safetensors.index.json").stat().st_size
    assert headers + index <= used < headers + index + 1000


def run_measured(body: str, *args: str) -> tuple[str, int]:
    """What a child process printed, and the bytes by which its peak memory grew while it ran `body`."""
    script = f"""
import resource, sys
from pathlib import Path
from core.checkpoint import open_checkpoint
from core.errors import CheckpointError

def peak():
    # Linux hands ru_maxrss down from the parent; VmHWM is the process's own.
    if Path("/proc/self/status").exists():
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

before = peak()
try:
{textwrap.indent(textwrap.dedent(body).strip(), "    ")}
except CheckpointError as error:
    print(error)
print(peak() - before)
"""
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", script, *args], capture_output=True, text=True, cwd=root, timeout=300, check=True
    )
    text, _, grown = done.stdout.strip().rpartition("\n")
    return text, int(grown)


def test_mixtral_8x7b_takes_little_memory(tmp_path: Path) -> None:
    text, grown = run_measured(
        "print(len(open_checkpoint(sys.argv[1]).tensors))", str(write_mixtral_8x7b(tmp_path / "m"))
    )
    assert text == "995"
    assert grown < 20_000_000


HUNDRED_MB = 100_000_000


def filled(pattern: bytes, *, start: bytes = b"{", stop: bytes = b"}") -> bytes:
    """A header of the largest size the format allows, `pattern` over and over."""
    body = pattern * ((HUNDRED_MB - len(start) - len(stop)) // len(pattern))
    header = start + body + stop
    return header + b" " * (HUNDRED_MB - len(header))


HOSTILE = {
    "nested lists": (filled(b"[", start=b'{"a":', stop=b""), "nested too deeply"),
    "tensors": (filled(b'"":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},', stop=b'"b":0}'), "more values than"),
    "escapes": (filled(rb"\"", start=b'{"', stop=b'":0}'), "its entry is not an object"),
    "wide characters": (filled(b"a", start='{"😀'.encode(), stop=b'":0}'), "its entry is not an object"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_header_of_100_mb_is_bounded_in_memory(kind: str, tmp_path: Path) -> None:
    """The bound is the header itself, its text, and at most one more gigabyte; most are refused far below."""
    header, problem = HOSTILE[kind]
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    text, grown = run_measured("print(len(open_checkpoint(sys.argv[1]).tensors))", str(tmp_path))
    assert problem in text
    assert len(text) < 1000
    assert grown < 1_200_000_000


def test_a_length_that_the_file_does_not_have_allocates_nothing(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(HUNDRED_MB.to_bytes(8, "little") + b"{}")
    text, grown = run_measured("print(len(open_checkpoint(sys.argv[1]).tensors))", str(tmp_path))
    assert "cut off inside its header" in text
    assert grown < 10_000_000
