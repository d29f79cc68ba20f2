"""Threads that read tensors ahead: what they give is what is in the files, each once, and errors reach who asks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

import core
from core.weights import load as load_module
from core.weights import prefetch as module
from core.weights.block import BlockReader
from core.weights.prefetch import Prefetch

SHARDS = {"one": {f"a{i}": (i, 7) for i in range(9)}, "two": {"b": (3, 5)}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for shard, tensors in SHARDS.items():
        arrays = {name: mx.random.normal(shape, key=mx.random.key(len(tensors))) for name, shape in tensors.items()}
        mx.save_safetensors(str(tmp_path / f"{shard}.safetensors"), arrays)
    return tmp_path


def opened(folder: Path, shard: str) -> dict[str, mx.array]:
    arrays = mx.load(str(folder / f"{shard}.safetensors"))
    assert isinstance(arrays, dict)
    return arrays


def test_every_tensor_is_the_files_and_handed_out_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_JOB", 100)  # several jobs for one shard
    prefetch = Prefetch(lambda shard: opened(folder, shard))
    prefetch.begin(
        (name, shard, 4 * shape[0] * shape[1]) for shard, names in SHARDS.items() for name, shape in names.items()
    )
    for shard, names in SHARDS.items():
        for name in names:
            array = prefetch.take(name)
            assert array is not None
            assert mx.array_equal(array, opened(folder, shard)[name]).item()
            assert prefetch.take(name) is None
    assert prefetch.shards == set(SHARDS)
    prefetch.close()


def test_what_a_thread_meets_reaches_who_asks(folder: Path) -> None:
    def refuse(shard: str) -> dict[str, mx.array]:
        raise core.errors.CheckpointError(f"{shard} is gone")

    prefetch = Prefetch(refuse)
    prefetch.begin([("b", "two", 60)])
    with pytest.raises(core.errors.CheckpointError, match="two is gone"):
        prefetch.take("b")
    prefetch.begin([("b", "two", 60)])
    prefetch.close()  # nobody asked: nothing is raised


@pytest.mark.parametrize("name", ["demo:mistral", "demo:mixtral"])
def test_a_model_read_by_threads_is_the_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = core.load(name, tokenizer=False)
    begun: list[int] = []

    class Reader(BlockReader):  # as on a GPU: nothing is read into place
        def __init__(self, *arguments: Any, prefetch: bool) -> None:
            assert prefetch
            super().__init__(*arguments, prefetch=prefetch)
            assert self._filler is None

        def begin(self, entries):
            begun.append(len(entries))
            return super().begin(entries)

    monkeypatch.setattr(load_module, "BlockReader", Reader)
    monkeypatch.setattr(load_module, "bytes_ahead", lambda nbytes: nbytes // 2)
    threaded = core.load(name, tokenizer=False)
    assert len(begun) > 4
    expected, found = (dict(tree_flatten(lm.model.parameters())) for lm in (alone, threaded))
    assert expected.keys() == found.keys()
    assert all(mx.array_equal(expected[key], found[key]).item() for key in expected)
