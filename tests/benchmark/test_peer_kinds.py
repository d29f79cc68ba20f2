"""How peers are named, and which format of weights they take beside ours."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import core
from core.benchmark import Shape, decode_chart
from core.benchmark.cores import usable_cores
from core.benchmark.peer import PeerProcess
from core.benchmark.peer_kinds import PEERS, PeerName, check_peer
from core.errors import BenchmarkError, UsageError
from tests.benchmark.conftest import TINY
from tests.fixtures import STORIES

SHORT = {"prompt_tokens": [5], "generate": 4, "iterations": 2}
# A side that answers at once, and says what it was asked.
_SIDE = """
class Side:
    def hello(self, task):
        self.threads = task["threads"]
        return {"version": str(self.threads)}

    def load(self, task):
        import pathlib, tempfile
        files = sorted(path.name for path in pathlib.Path(task["path"]).iterdir())
        assert "config.json" in files and "quantization" not in (pathlib.Path(task["path"]) / "config.json").read_text()
        (pathlib.Path(tempfile.gettempdir()) / "left behind").write_text(task["format"])
        return {"seconds": 1.0}

    def make(self, task):
        return {}

    def run(self, task):
        return {"first_token": 1.0, "decode": 0.5}
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A peer ``quick`` that needs nothing, with llama.cpp's formats."""
    side = tmp_path / "side.py"
    side.write_text(_SIDE)
    monkeypatch.setitem(PEERS, "quick", dataclasses.replace(PEERS["llama.cpp"], modules=(), side=str(side)))
    return side


@pytest.mark.parametrize(
    ("name", "bits", "expected"),
    [
        ("transformers", [], "bfloat16"),
        ("transformers:float32", [], "float32"),
        ("transformers:bfloat16", [4], "bfloat16"),
        ("llama.cpp", [], "BF16"),
        ("llama.cpp", [4], "Q4_0"),
        ("llama.cpp", [8], "Q8_0"),
        ("llama.cpp:F16", [4, 6], "F16"),
        ("mlx-lm", [3], None),
    ],
)
def test_formats(name: str, bits: list[int], expected: str | None) -> None:
    kind, _, chosen = name.partition(":")
    assert PeerName(name, PEERS[kind], chosen or None).format_beside(frozenset(bits)) == expected


@pytest.mark.parametrize(("name", "bits"), [("transformers", [4]), ("llama.cpp", [5]), ("llama.cpp", [4, 6])])
def test_formats_that_are_not_obvious_must_be_named(name: str, bits: list[int]) -> None:
    with pytest.raises(UsageError, match=f"weights of {bits[0]}.*bits") as raised:
        PeerName(name, PEERS[name], None).format_beside(frozenset(bits))
    assert f"{name}:{PEERS[name].formats[-1]}" in str(raised.value)


@pytest.mark.parametrize("name", ["llama.cpp:Q9", "llama.cpp:", "mlx-lm:float32"])
def test_formats_that_there_are_not(name: str) -> None:
    with pytest.raises(UsageError, match="has no such format"):
        check_peer(name)


def test_every_module_of_a_peer_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PEERS, "llama.cpp", dataclasses.replace(PEERS["llama.cpp"], modules=("json", "no_such")))
    with pytest.raises(BenchmarkError, match="no module no_such") as raised:
        check_peer("llama.cpp:Q4_0")
    assert "pip install llama-cpp-python gguf" in str(raised.value)


@pytest.mark.usefixtures("peer", "stand_in")
def test_several_peers_in_one_run() -> None:
    found = core.bench(Shape("tiny", TINY, bits=4), **SHORT, against=["quick", "mlx-lm", "quick:F16"])
    assert [peer.name for peer in found.peers] == ["quick", "mlx-lm", "quick:F16"]
    assert [peer.weights for peer in found.peers] == ["Q4_0", None, "F16"]
    assert found.peers[0].version == str(usable_cores())
    (length,) = found.lengths
    assert (length.peer, length.ratio, found.peer) == (length.peers[0], length.ratios[0], found.peers[0])
    assert length.peers[2].decode.values == (6.0, 6.0)
    assert length.peers[2].prefill.values == (5.0, 5.0)
    for peer, ratio in zip(length.peers, length.ratios, strict=True):
        pairs = zip(length.speed.decode.values, peer.decode.values, strict=True)
        assert ratio.decode.values == tuple(mine / theirs for mine, theirs in pairs)
    assert length.peers[2].peak_memory > 1 << 20  # of the whole process, as it does not say itself
    chart = decode_chart(found)
    assert all(name in chart for name in ("quick", "mlx-lm", "quick:F16"))


@pytest.mark.usefixtures("stand_in")
def test_a_quantized_checkpoint_is_floats_for_a_peer_that_reads_only_those() -> None:
    found = core.bench("demo:mixtral", **SHORT, against=("quick",))
    assert found.peers[0].weights == "Q4_0"
    assert found.peers[0].loading is not None
    assert found.peers[0].loading.seconds.values == (1.0, 1.0)


@pytest.mark.usefixtures("stand_in")
def test_a_named_format_is_beside_whatever_ours_is() -> None:
    assert core.bench(STORIES, **SHORT, against="quick:F16", quantize=4).peers[0].weights == "F16"
    with pytest.raises(UsageError, match="quantize would change the weights on our side only"):
        core.bench(STORIES, **SHORT, against="quick", quantize=4)
    with pytest.raises(UsageError, match="named twice"):
        core.bench(STORIES, **SHORT, against=["quick", "quick"])


@pytest.mark.usefixtures("stand_in")
def test_files_of_a_peer_go_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with PeerProcess("quick") as process:
        process.load(STORIES)
        assert [path.read_text() for path in tmp_path.glob("corelm-peer-*/left behind")] == ["BF16"]
    assert not list(tmp_path.glob("corelm-peer-*"))
