"""The hub, against a server on 127.0.0.1: what is fetched, what is not, what happens when it breaks, what is said then.

The client runs in a child process, since it reads its environment when it is imported.
"""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .hub_server import Hub, serve
from .sparse import write_checkpoint, write_shard

TENSORS = {f"layers.{i}.weight": ("F32", [64, 1024]) for i in range(8)}  # 2 MiB in all
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
NEEDED = [
    "README.md",
    "additional_chat_templates/tools.jinja",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    ONE,
    TWO,
    INDEX,
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
]
UNNEEDED = [
    ".gitattributes",
    "consolidated.safetensors",
    "image.png",
    "model-00003-of-00003.safetensors",
    "modeling_evil.py",
    "onnx/config.json",
    "original/consolidated.00.pth",
    "params.json.md",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "trainer_state.json",
]


def fill(directory: Path) -> None:
    """Real bytes behind the headers, so that a resume that went wrong would show."""
    for shard in (ONE, TWO):
        data = (directory / shard).read_bytes()
        header = 8 + int.from_bytes(data[:8], "little")
        (directory / shard).write_bytes(data[:header] + random.Random(shard).randbytes(len(data) - header))


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A hub whose ``org/model`` has two shards, everything a model needs and much that it does not."""
    directory = write_checkpoint(tmp_path / "repository", TENSORS, shards=2, config={"model_type": "mistral"})
    fill(directory)
    for name in [*NEEDED, *UNNEEDED]:
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            path.write_text("{}" if name.endswith(".json") else f"content of {name}")
    with serve(directory) as running:
        yield running


@pytest.fixture
def child(hub: Hub, tmp_path: Path) -> Child:
    """Runs code with the client's environment set to the hub and an empty cache."""

    def start(code: str, **environment: str) -> subprocess.Popen[str]:
        preamble = "from core.checkpoint import open_checkpoint\nfrom core.errors import CoreError\n"
        body = textwrap.indent(textwrap.dedent(code).strip(), "    ")
        code = f"{preamble}try:\n{body}\nexcept CoreError as error:\n    print(type(error).__name__, error)\n"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING", "XDG"))}
        settings = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }
        return subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
            env={**kept, **settings, **environment},
        )

    return Child(start)


class Child:
    """Starts child processes; called, runs one to its end and returns what it printed, line by line."""

    def __init__(self, start: Callable[..., subprocess.Popen[str]]) -> None:
        self.start = start
        self.stderr = ""

    def __call__(self, code: str, **environment: str) -> list[str]:
        with self.start(code, **environment) as process:
            out, self.stderr = process.communicate(timeout=120)
        assert process.returncode == 0, self.stderr
        return out.splitlines()


def snapshot(tmp_path: Path, hub: Hub) -> Path:
    return tmp_path / "home" / "hub" / "models--org--model" / "snapshots" / hub.commit


def files_in(directory: Path) -> list[str]:
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())


def same(directory: Path, other: Path, names: list[str]) -> bool:
    return all((directory / name).read_bytes() == (other / name).read_bytes() for name in names)


def same_content(blob: Path, hub: Hub) -> bool:
    return any(blob.read_bytes() == (hub.directory / name).read_bytes() for name in NEEDED)


OPEN = """
checkpoint = open_checkpoint("org/model")
print(checkpoint.path, checkpoint.revision, len(checkpoint.tensors), *checkpoint.shards)
"""


def test_a_download_fetches_what_is_needed_and_nothing_else(hub: Hub, child: Child, tmp_path: Path) -> None:
    (line,) = child(OPEN)
    assert line == f"{snapshot(tmp_path, hub)} {hub.commit} 8 {ONE} {TWO}"
    assert files_in(snapshot(tmp_path, hub)) == sorted(NEEDED)
    assert same(snapshot(tmp_path, hub), hub.directory, NEEDED)
    assert child.stderr == ""  # no progress unless asked for

    before = len(hub.requests)
    assert child(OPEN) == [line]
    assert [r.path for r in hub.requests[before:] if "/resolve/" in r.path or "/cdn/" in r.path] == []


def test_the_text_files_come_without_the_weights(hub: Hub, child: Child, tmp_path: Path) -> None:
    (line,) = child(
        """
        checkpoint = open_checkpoint("org/model", download=False).fetch_text()
        print(checkpoint.path, checkpoint.has("config.json"))
        """
    )
    assert line == f"{snapshot(tmp_path, hub)} True"
    assert files_in(snapshot(tmp_path, hub)) == sorted(name for name in NEEDED if "safetensors" not in name)


def test_what_is_cached_needs_no_network(hub: Hub, child: Child, tmp_path: Path) -> None:
    (line,) = child(OPEN)
    before = len(hub.requests)
    assert child(OPEN + OPEN.replace('model")', 'model", download=False)'), HF_HUB_OFFLINE="1") == [line, line]
    assert len(hub.requests) == before
    # The cache is the endpoint's: a hub that is down is the same address with nobody there.
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        down = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        assert child(OPEN, HF_ENDPOINT=down) == [line]
    hub.failure = (503, "")
    assert child(OPEN) == [line]


def test_a_connection_that_breaks_is_resumed_where_it_broke(hub: Hub, child: Child, tmp_path: Path) -> None:
    """In shards larger than the 10 MiB of which the client's chunks are: that much may be asked for again."""
    write_checkpoint(hub.directory, {"a": ("U8", [24 << 20]), "b": ("U8", [1])}, shards=2)
    fill(hub.directory)
    hub.cuts[ONE] = [11 << 20, 22 << 20]
    (line,) = child(OPEN)
    assert line.startswith(str(snapshot(tmp_path, hub)))
    assert same(snapshot(tmp_path, hub), hub.directory, NEEDED)
    ranges = [request.range for request in hub.requests if request.method == "GET" and request.path == f"/cdn/{ONE}"]
    assert ranges == [None, f"bytes={10 << 20}-", f"bytes={20 << 20}-"]


def test_a_download_that_is_killed_leaves_nothing_finished_and_goes_on(hub: Hub, child: Child, tmp_path: Path) -> None:
    """The next run fetches the file that was cut off, and none of those that were complete."""
    hub.stalls[TWO] = 500_000
    with child.start(OPEN) as process:
        for _ in range(6000):  # two minutes, then what is there is judged
            if process.poll() is not None or len(files_in(snapshot(tmp_path, hub))) >= len(NEEDED) - 1:
                break
            time.sleep(0.02)
        process.kill()
        out, err = process.communicate()
    assert (out, err) == ("", "")
    assert files_in(snapshot(tmp_path, hub)) == sorted(set(NEEDED) - {TWO})
    blobs = snapshot(tmp_path, hub).parents[1] / "blobs"
    assert all(blob.suffix == ".incomplete" or same_content(blob, hub) for blob in blobs.iterdir())

    hub.stalls.clear()
    before = len(hub.requests)
    (line, hint) = child(OPEN, HF_HUB_OFFLINE="1")
    assert line == (
        "HubError hub:org/model: HF_HUB_OFFLINE forbids requests to the hub, "
        f"and the cache holds only a part of the repository (found no {TWO})"
    )
    assert "unset HF_HUB_OFFLINE" in hint
    assert len(hub.requests) == before
    (line,) = child(OPEN)
    assert same(snapshot(tmp_path, hub), hub.directory, NEEDED)
    assert hub.fetched(since=before) == [TWO]


def test_progress_is_shown_on_stderr_where_asked_for(child: Child, tmp_path: Path) -> None:
    code = OPEN.replace('model")', 'model", progress=True)')
    assert len(child(code, TQDM_POSITION="-1")) == 1  # the client's way to show bars without a terminal
    assert "100%" in child.stderr
    assert len(child(code, TQDM_POSITION="-1", HF_HUB_DISABLE_PROGRESS_BARS="1", HF_HOME=str(tmp_path / "other"))) == 1
    assert child.stderr == ""


def test_revisions(hub: Hub, child: Child, tmp_path: Path) -> None:
    lines = child(
        """
        for source, revision in (("org/model@v1", None), ("org/model", "v1"), ("org/model", None)):
            checkpoint = open_checkpoint(source, revision=revision, download=False)
            print(checkpoint.revision, checkpoint.where("config.json"), checkpoint.where())
        print(open_checkpoint("org/model@v1").path)
        """
    )
    assert lines == [
        f"{hub.commit} hub:org/model@v1/config.json hub:org/model@v1",
        f"{hub.commit} hub:org/model@v1/config.json hub:org/model@v1",
        f"{hub.commit} hub:org/model@main/config.json hub:org/model@main",
        str(snapshot(tmp_path, hub)),
    ]
    sources = ("org/model@v1", f"org/model@{hub.commit}")
    code = f"for source in {sources}: print(open_checkpoint(source).revision)"
    assert child(code, HF_HUB_OFFLINE="1") == [hub.commit, hub.commit]


INSPECT = """
checkpoint = open_checkpoint("org/model", download=False)
print(checkpoint.path, checkpoint.shards, checkpoint.read_json("config.json"))
print(sum(info.nbytes for info in checkpoint.tensors.values()), checkpoint.stray, checkpoint.formats)
"""
INSPECTED = [
    f"None ('{ONE}', '{TWO}') {{'model_type': 'mistral'}}",
    "2097152 ('consolidated.safetensors', 'model-00003-of-00003.safetensors') ('hf',)",
]


def test_headers_come_by_range_requests(hub: Hub, child: Child, tmp_path: Path) -> None:
    assert child(INSPECT) == INSPECTED
    ranges = [(r.path, r.range) for r in hub.requests if r.method == "GET" and r.path.startswith("/cdn/")]
    assert sorted(ranges) == [(f"/cdn/{ONE}", "bytes=0-131071"), (f"/cdn/{TWO}", "bytes=0-131071")]
    assert hub.sent() < 2 * 131_072 + 20_000
    assert files_in(snapshot(tmp_path, hub)) == ["config.json", INDEX]


def test_a_server_that_ignores_ranges_is_not_read_to_the_end(hub: Hub, child: Child) -> None:
    """What is sent beyond the header is what the sockets' buffers took before the client hung up."""
    write_checkpoint(hub.directory, {f"{i}": ("U8", [1 << 30]) for i in range(16)}, shards=2)
    hub.ignore_ranges = True
    (line,) = child('print(len(open_checkpoint("org/model", download=False).tensors))')
    assert line == "16"
    assert hub.sent() < 64 << 20  # of 16 GiB


def test_a_long_header_takes_a_second_request(hub: Hub, child: Child) -> None:
    (hub.directory / INDEX).unlink()
    tensors = {f"model.layers.{i}.{'x' * 100}.weight": ("U8", [2]) for i in range(2000)}
    write_shard(hub.directory / "model.safetensors", tensors)
    code = 'print(len(open_checkpoint("org/model", download=False).tensors))'
    assert child(code) == ["2000"]
    header = 8 + int.from_bytes((hub.directory / "model.safetensors").read_bytes()[:8], "little")
    ranges = [r.range for r in hub.requests if r.path.startswith("/cdn/")]
    assert ranges == ["bytes=0-131071", f"bytes=131072-{header - 1}"]
    hub.ignore_ranges = True
    assert child(code) == ["2000"]


def test_damage_on_the_hub_is_named(hub: Hub, child: Child) -> None:
    (hub.directory / INDEX).unlink()
    damage = {
        b"": "is an empty file",
        b"\x10": "is too short",
        b"\x02\0\0\0\0\0\0\0[]": "is not a safetensors file: its header is not a JSON object",
        b"\xff" * 9: "is not a safetensors file: its first 8 bytes",
        b"\0\0\1\0\0\0\0\0{}": "is cut off inside its header",
        b"version https://git-lfs.github.com/spec/v1": "is a git-LFS pointer",
    }
    lines = child(
        f"""
        from pathlib import Path
        for data in {list(damage)}:
            Path({str(hub.directory / "model.safetensors")!r}).write_bytes(data)
            try:
                open_checkpoint("org/model", download=False).tensors
            except CoreError as error:
                print(type(error).__name__, str(error).splitlines()[0])
        """
    )
    assert len(lines) == len(damage)
    for line, problem in zip(lines, damage.values(), strict=True):
        assert line.startswith(f"CheckpointError hub:org/model@main/model.safetensors: {problem}")


def test_a_repository_without_safetensors_is_refused_before_anything_is_downloaded(hub: Hub, child: Child) -> None:
    for shard in hub.directory.glob("*.safetensors*"):
        shard.unlink()
    (line, hint) = child(OPEN)
    problem = "holds no safetensors weights, only PyTorch pickles (found pytorch_model.bin)"
    assert line == f"CheckpointError hub:org/model@main: {problem}"
    assert "convert them to safetensors" in hint
    assert hub.fetched() == []


def test_a_repository_that_changes_before_its_download_is_an_error(hub: Hub, child: Child, tmp_path: Path) -> None:
    """What is planned are the headers of one commit: the tensors of another do not go under them."""
    process = child.start(
        f"""
        import pathlib, time
        checkpoint = open_checkpoint("org/model", download=False)
        checkpoint.tensors
        print("planned", flush=True)
        while not pathlib.Path({str(tmp_path / "changed")!r}).exists():
            time.sleep(0.01)
        print(checkpoint.fetch_weights().path)
        """,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "planned\n"
        hub.commit = "beef" * 10
        write_checkpoint(hub.directory, TENSORS | {"another": ("U8", [5])}, shards=2)
        (tmp_path / "changed").touch()
        out = process.communicate(timeout=120)[0]
    assert "hub:org/model@main: the tensors that were downloaded are not those that were listed" in out


def test_files_of_a_remote_repository(hub: Hub, child: Child) -> None:
    lines = child(
        """
        checkpoint = open_checkpoint("org/model", download=False)
        print(checkpoint.has("config.json"), checkpoint.has("modeling_evil.py"), checkpoint.has("onnx/config.json"))
        for name in ("chat_template.jinja", "additional_chat_templates/tools.jinja"):
            print(checkpoint.read_text(name))
        for ask in (lambda: checkpoint.read_json("params.json"), lambda: checkpoint.shard_path(checkpoint.shards[0])):
            try:
                ask()
            except CoreError as error:
                print(error.problem, error.where)
        local = checkpoint.fetch_weights()
        print(local.path == local.shard_path(local.shards[0]).parent, dict(local.tensors) == dict(checkpoint.tensors))
        """
    )
    assert lines == [
        "True True False",
        "content of chat_template.jinja",
        "content of additional_chat_templates/tools.jinja",
        "has no params.json hub:org/model@main",
        f"is not downloaded hub:org/model@main/{ONE}",
        "True True",
    ]


ASK = """
for source in {sources}:
    for download in (True, False):
        try:
            open_checkpoint(source, download=download).tensors
        except CoreError as error:
            print(type(error).__name__, *str(error).splitlines())
"""


def errors(child: Child, *sources: str, **environment: str) -> list[str]:
    """The error of each source, downloaded and not, which are the same."""
    texts = child(ASK.format(sources=list(sources)), **environment)
    assert texts[::2] == texts[1::2]
    assert len(texts) == 2 * len(sources)
    return texts[::2]


def test_what_the_hub_does_not_have(hub: Hub, child: Child) -> None:
    nobody, revision = errors(child, "org/nobody", "org/model@v9")
    assert nobody == (
        f"HubError hub:org/nobody: there is no such repository on {hub.url}"
        "   check the spelling, org/name; if it is private, log in with `hf auth login`, or set HF_TOKEN; "
        "a local model is passed as a directory"
    )
    assert revision.startswith(f"HubError hub:org/model@v9: there is no such revision of this repository on {hub.url}")


def test_a_gated_repository(hub: Hub, child: Child, tmp_path: Path) -> None:
    hub.token = "hf_secret"
    (error,) = errors(child, "org/model")
    assert error.startswith(f"HubError hub:org/model: access to this repository on {hub.url} is granted by its owner")
    assert f"ask for access at {hub.url}/org/model" in error
    assert "HF_TOKEN" in error
    assert child(INSPECT + OPEN, HF_TOKEN="hf_secret")[:-1] == INSPECTED
    assert same(snapshot(tmp_path, hub), hub.directory, NEEDED)
    assert {request.token for request in hub.requests if request.path.startswith("/cdn/")} == {None}  # not ours to know


def test_a_hub_that_is_not_there(child: Child) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        down = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        (error,) = errors(child, "org/model", HF_ENDPOINT=down)
    problem = f"the connection to {down} failed, and nothing of the repository is cached"
    assert error.startswith(f"HubError hub:org/model: {problem} (found ConnectError")
    assert "check the network and HF_ENDPOINT" in error
    (error,) = errors(child, "org/model", HF_HUB_OFFLINE="1")
    assert error == (
        "HubError hub:org/model: HF_HUB_OFFLINE forbids requests to the hub, and nothing of the repository is cached "
        "  unset HF_HUB_OFFLINE to download it, or pass a local directory"
    )


@pytest.mark.parametrize(
    ("status", "found"),
    [
        (503, "refused (found HTTP 503: something went wrong)"),
        (200, "the hub's client failed"),
    ],
)
def test_a_hub_that_refuses_or_is_none(hub: Hub, child: Child, status: int, found: str) -> None:
    hub.failure = (status, "")
    (error,) = errors(child, "org/model")
    assert error.startswith("HubError hub:org/model: ")
    assert found in error
    assert hub.url in error
    assert len(error) < 600


def test_a_disk_that_takes_no_more(hub: Hub, child: Child, tmp_path: Path) -> None:
    """Files are limited to less than a shard; what is left has no file that looks finished and is not."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))\n"
    (line, hint) = child(limit + OPEN)
    assert line.startswith("HubError hub:org/model: the download could not be stored: File too large")
    assert "set HF_HOME to another disk" in hint
    left = files_in(snapshot(tmp_path, hub))
    assert not {ONE, TWO} & set(left)
    assert same(snapshot(tmp_path, hub), hub.directory, left)
    blobs = snapshot(tmp_path, hub).parents[1] / "blobs"
    assert all(same_content(blob, hub) for blob in blobs.iterdir())
    (line,) = child(OPEN)
    assert same(snapshot(tmp_path, hub), hub.directory, NEEDED)


def test_the_client_is_imported_for_hub_ids_only(hub: Hub, child: Child) -> None:
    lines = child(
        f"""
        import sys
        open_checkpoint({str(hub.directory)!r}).tensors
        heavy = {{"huggingface_hub", "mlx", "numpy", "pydantic", "safetensors", "httpx", "httpx2", "tqdm"}}
        print(sorted(heavy & {{name.partition(".")[0] for name in sys.modules}}))
        """
    )
    assert lines == ["[]"]
