"""Arrays that are read from several places at once equal those that are read apart and joined."""

from __future__ import annotations

import random
from pathlib import Path

import mlx.core as mx
import pytest

import core
from core.checkpoint import TensorInfo, open_checkpoint
from core.errors import CheckpointError
from core.weights import joint, load
from core.weights.joint import Extent, JointReader, Run, extent
from core.weights.nodes import Joined, Leaf, Node, Permuted, Stacked
from tests.fixtures import STORIES_SHARDED, oracle


def info(name: str, shape: tuple[int, ...], start: int, shard: str = "a", dtype: str = "F16") -> TensorInfo:
    size = 2
    for side in shape:
        size *= side
    return TensorInfo(name, dtype, shape, shard, start, start + size)


TENSORS = {
    "q": info("q", (4, 3), 100),
    "k": info("k", (2, 3), 200, "b"),
    "e": info("e", (2, 4, 3), 300),
    "f": info("f", (2, 1, 3), 400),
    "other": info("other", (4, 3), 500, dtype="BF16"),
    "strange": info("strange", (4, 3), 600, dtype="F8_E4M3"),
}
Q, K, E, F = (Leaf(name) for name in "qkef")


def test_where_the_bytes_are() -> None:
    assert extent(Q, -2, TENSORS) == Extent("F16", (4, 3), (Run("a", 100, 124),))
    assert extent(Joined((Q, K)), -2, TENSORS) == Extent("F16", (6, 3), (Run("a", 100, 124), Run("b", 200, 212)))
    stacked = extent(Stacked((Joined((Q, K)), Joined((K, Q)))), -2, TENSORS)
    assert stacked is not None
    assert stacked.shape == (2, 6, 3)
    assert [run.shard for run in stacked.runs] == ["a", "b", "b", "a"]
    # Stacked already: the rows of each expert come from both tensors in turn.
    rows = (Run("a", 300, 324), Run("a", 400, 406), Run("a", 324, 348), Run("a", 406, 412))
    assert extent(Joined((E, F)), -2, TENSORS) == Extent("F16", (2, 5, 3), rows)


@pytest.mark.parametrize(
    "node",
    [
        Leaf("strange"),
        Joined((Q, Leaf("other"))),
        Permuted(Q, 1),
        Joined((Q, Permuted(Q, 1))),
        Joined((Stacked((Q, Q)), Stacked((Q, Q)))),
    ],
)
def test_what_is_not_simply_in_files(node: Node) -> None:
    assert extent(node, -2, TENSORS) is None


@pytest.mark.parametrize("seed", range(4))
def test_bytes_come_in_order(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joint, "_PIECE", 7)
    draw = random.Random(seed)
    contents = {name: draw.randbytes(500) for name in ("a", "b")}
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    runs = []
    for _ in range(draw.randint(1, 5)):
        start = draw.randrange(400)
        runs.append(Run(draw.choice("ab"), start, draw.randint(start, 500)))
    wanted = b"".join(contents[run.shard][run.start : run.stop] for run in runs)
    reader = JointReader(tmp_path.joinpath)
    array = reader.array(Extent("U8", (len(wanted),), tuple(runs)))
    mx.eval(array)
    reader.close()
    assert bytes(array) == wanted


@pytest.mark.parametrize("name", ["sharded", "mixtral_8e_top3", "mistral_bf16"])
def test_the_model_is_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = STORIES_SHARDED if name == "sharded" else oracle(name)
    monkeypatch.setattr(load, "joins_in_files", lambda: False)
    apart = core.load(source, tokenizer=False).model
    monkeypatch.setattr(load, "joins_in_files", lambda: True)
    calls: list[Extent] = []
    array = JointReader.array
    monkeypatch.setattr(JointReader, "array", lambda self, found: (calls.append(found), array(self, found))[1])
    together = core.load(source, tokenizer=False).model
    assert calls
    tokens = mx.array([[1, 2, 3, 4, 5]])
    assert mx.array_equal(apart(tokens), together(tokens))


def test_a_file_that_has_become_shorter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "joins_in_files", lambda: True)
    for file in oracle("mistral_bf16").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    plan = core.loading.prepare(tmp_path)
    weights = tmp_path / "model.safetensors"
    assert open_checkpoint(tmp_path).tensors
    monkeypatch.setattr(load._Reader, "_take", lambda self, name: mx.zeros(self._checkpoint.tensors[name].shape))
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="reading the weights failed"):
        load.execute(plan.plan, plan.model, plan.checkpoint)
