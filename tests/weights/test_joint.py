"""Arrays that are read from several places at once equal those that are read apart and joined."""

from __future__ import annotations

import random
import signal
import threading
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import core
from core.checkpoint import TensorInfo
from core.errors import CheckpointError, WeightsError
from core.loading import prepare
from core.weights import block, fill, load
from core.weights.block import BlockReader
from core.weights.fill import Filler, blank
from core.weights.joint import Extent, Run, extent
from core.weights.nodes import Joined, Leaf, Node, Permuted, Stacked
from tests.fixtures import STORIES_SHARDED, oracle

needs_cpu = pytest.mark.skipif(not fill.can_fill(), reason="only a CPU's memory is filled from outside")


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


@pytest.fixture
def everything(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """However small a parameter is, threads read it; returns what they have read so far."""
    monkeypatch.setattr(block, "_LARGE", 0)
    monkeypatch.setattr(fill, "_PIECE", 1000)
    read: list[Run] = []
    ordinary = Filler.fill

    def noting(self: Filler, array: mx.array, runs: tuple[Run, ...], dtype: mx.Dtype | None) -> list:
        read.extend(runs)
        return ordinary(self, array, runs, dtype)

    monkeypatch.setattr(Filler, "fill", noting)
    return read


def test_where_the_bytes_are() -> None:
    assert extent(Q, -2, TENSORS) == Extent(mx.float16, (4, 3), (Run("a", 100, 124),))
    assert extent(Joined((Q, K)), -2, TENSORS) == Extent(mx.float16, (6, 3), (Run("a", 100, 124), Run("b", 200, 212)))
    stacked = extent(Stacked((Joined((Q, K)), Joined((K, Q)))), -2, TENSORS)
    assert stacked is not None
    assert stacked.shape == (2, 6, 3)
    assert [run.shard for run in stacked.runs] == ["a", "b", "b", "a"]
    # Stacked already: the rows of each expert come from both tensors in turn.
    rows = (Run("a", 300, 324), Run("a", 400, 406), Run("a", 324, 348), Run("a", 406, 412))
    assert extent(Joined((E, F)), -2, TENSORS) == Extent(mx.float16, (2, 5, 3), rows)


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


@needs_cpu
@pytest.mark.parametrize("seed", range(4))
def test_bytes_come_in_order(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fill, "_PIECE", 7)
    draw = random.Random(seed)
    contents = {name: draw.randbytes(500) for name in ("a", "b")}
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    runs = []
    for _ in range(draw.randint(1, 5)):
        start = draw.randrange(400)
        runs.append(Run(draw.choice("ab"), start, draw.randint(start, 500)))
    wanted = b"".join(contents[run.shard][run.start : run.stop] for run in runs)
    array = blank(len(wanted))
    mx.eval(array)
    filler = Filler(tmp_path.joinpath)
    assert all(job.result() for job in filler.fill(array, runs, None))
    filler.close()
    assert bytes(memoryview(array)) == wanted


@needs_cpu
@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32], ids=str)
@pytest.mark.parametrize("place", [0, 4999, 9998])
def test_a_number_that_is_not_finite_is_found_wherever_it_is(
    dtype: mx.Dtype, place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fill, "_PIECE", 1000)
    numbers = mx.random.normal((9999,)).astype(dtype)
    for bad in (None, float("inf"), float("-inf"), float("nan")):
        if bad is not None:
            numbers[place] = bad
        (tmp_path / "a").write_bytes(bytes(memoryview(numbers.view(mx.uint8))))
        memory = blank(numbers.nbytes)
        mx.eval(memory, numbers)
        filler = Filler(tmp_path.joinpath)
        filled = [job.result() for job in filler.fill(memory, [Run("a", 0, numbers.nbytes)], dtype)]
        filler.close()
        assert all(filled) == (bad is None)
        assert sum(not one for one in filled) == (bad is not None)


@needs_cpu
@pytest.mark.parametrize("name", ["sharded", "mixtral_8e_top3", "mistral_bf16"])
@pytest.mark.parametrize("dtype", [None, mx.float16])
def test_the_model_is_the_same(name: str, dtype: mx.Dtype | None, everything: list[Run]) -> None:
    source = STORIES_SHARDED if name == "sharded" else oracle(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block, "can_fill", lambda: False)
        apart = core.load(source, tokenizer=False, dtype=dtype).model
    assert not everything
    together = core.load(source, tokenizer=False, dtype=dtype).model
    assert everything
    tokens = mx.array([[1, 2, 3, 4, 5]])
    assert mx.array_equal(apart(tokens), together(tokens))


@needs_cpu
@pytest.mark.parametrize("numpy", [True, False])
def test_what_is_not_finite_names_its_tensor(
    numpy: bool, everything: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block, "can_check", lambda: numpy)
    for file in oracle("mistral_bf16").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    plan = prepare(tmp_path)
    name = next(name for name in plan.checkpoint.tensors if name.endswith("k_proj.weight"))
    tensor = plan.checkpoint.tensors[name]
    with (tmp_path / tensor.shard).open("r+b") as file:
        file.seek(tensor.start + 6)
        file.write(np.array([0xFF80], dtype=np.uint16).tobytes())
    with pytest.raises(WeightsError, match=name):
        core.load(tmp_path, tokenizer=False)
    core.load(tmp_path, tokenizer=False, check_finite=False)


@needs_cpu
def test_a_file_that_has_become_shorter(everything: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in oracle("mistral_bf16").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    plan = prepare(tmp_path)
    # Only what is joined is read: neither MLX itself nor a look at the file must be the one who notices.
    monkeypatch.setattr("core.weights.reader.Reader.build", lambda self, node, axis: mx.zeros((1,)))
    monkeypatch.setattr("core.checkpoint.Checkpoint.check_unchanged", lambda self, name, descriptor=None: None)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="a shard has become shorter"):
        load.execute(plan.plan, plan.model, plan.checkpoint)


@needs_cpu
def test_an_interrupted_load_ends_its_threads(everything: list[Run], monkeypatch: pytest.MonkeyPatch) -> None:
    before = threading.active_count()

    def interrupt(done: int, total: int) -> None:
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        core.load(oracle("mistral_bf16"), tokenizer=False, progress=interrupt)
    assert threading.active_count() == before


@needs_cpu
def test_loads_beside_a_thread_that_keeps_pythons_lock_while_it_waits_for_mlx(everything: list[Run]) -> None:
    """The lock is let go only between its calls, each of which waits for MLX; loads must get on all the same."""
    stop = threading.Event()

    def busy() -> None:
        shape = (64, 64)
        while not stop.is_set():
            mx.save_safetensors("/dev/null", {"a": mx.ones(shape) + 1})
            np.array(mx.ones(shape) * 2)
            (mx.ones(shape) * 3).tolist()
            mx.clear_cache()

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        for _ in range(5):
            core.load(oracle("mistral_bf16"), tokenizer=False)
    finally:
        stop.set()
        thread.join()


def test_a_block_reader_without_threads_has_nothing_to_close(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block, "can_fill", lambda: False)
    plan = prepare(oracle("mistral_bf16"))
    reader = BlockReader(plan.checkpoint, True)
    begun = reader.begin(list(plan.plan.entries[:1]))
    assert not begun.blanks
    reader.close()
