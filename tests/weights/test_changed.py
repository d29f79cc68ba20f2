"""A shard that changes after its header was read is an error that names it, never numbers from other places."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest

import core
from core.checkpoint import open_checkpoint, tensors
from core.errors import CheckpointError
from core.loading import prepare
from core.weights import block, fill, filled, load
from tests.fixtures import STORIES_SHARDED, oracle
from tests.fixtures.variants import Tensor, variant

SOURCE = oracle("mistral_bf16")
CHANGED = "has changed since its header was read"


def shifted(directory: Path) -> bytes:
    """The same tensors as the source's, all in other places: another one comes before them."""
    first = {"a.first": Tensor("F32", (64,), bytes(256))}
    return (variant(SOURCE, directory, tensors=lambda found: first | found) / "model.safetensors").read_bytes()


def in_place(file: Path, data: bytes) -> None:
    file.write_bytes(data)


def by_rename(file: Path, data: bytes) -> None:
    other = file.with_name("other")
    other.write_bytes(data)
    other.replace(file)


def in_secret(file: Path, data: bytes) -> None:
    """Of the same size, and with the times set back."""
    before = file.stat()
    file.write_bytes(data[: before.st_size].ljust(before.st_size, b"\0"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def shorter(file: Path, data: bytes) -> None:
    file.write_bytes(data[:2000])


def removed(file: Path, data: bytes) -> None:
    file.unlink()


WAYS = [in_place, by_rename, in_secret, shorter, removed]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return shutil.copytree(SOURCE, tmp_path / "model")


@pytest.fixture(params=["into place", "by tensor", "at once", "MLX"])
def reading(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is read by threads where it belongs, or by them tensor by tensor, or without threads, or by MLX."""
    if request.param == "MLX":
        monkeypatch.setattr(block, "can_fill", lambda: False)
    elif not fill.can_fill():
        pytest.skip("only a CPU's memory is filled from outside")
    else:
        monkeypatch.setattr(block, "_LARGE", 0 if request.param == "into place" else 1 << 40)
        monkeypatch.setattr(filled, "_SMALL", 0 if request.param == "by tensor" else 1 << 40)


@pytest.mark.usefixtures("reading")
@pytest.mark.parametrize("change", WAYS)
def test_before_anything_is_read(change: Callable[[Path, bytes], None], model: Path, tmp_path: Path) -> None:
    prepared = prepare(model)
    change(model / "model.safetensors", shifted(tmp_path / "shifted"))
    for lazy in (False, True):
        with pytest.raises(CheckpointError) as caught:
            load.execute(prepared.plan, prepared.model, prepared.checkpoint, lazy=lazy)
        assert caught.value.where == str(model / "model.safetensors")
        assert (CHANGED if change is not removed else "does not exist") in caught.value.problem


@pytest.mark.usefixtures("reading")
@pytest.mark.parametrize("change", WAYS)
def test_while_it_is_read(change: Callable[[Path, bytes], None], model: Path, tmp_path: Path) -> None:
    data = shifted(tmp_path / "shifted")
    calls: list[int] = []

    def once(done: int, total: int) -> None:
        if not calls:
            change(model / "model.safetensors", data)
        calls.append(done)

    problem = CHANGED if change is not removed else "does not exist"
    with pytest.raises(CheckpointError, match=problem) as caught:
        core.load(model, tokenizer=False, progress=once)
    assert caught.value.where == str(model / "model.safetensors")
    assert calls


@pytest.mark.parametrize("change", WAYS)
def test_while_it_is_converted(change: Callable[[Path, bytes], None], model: Path, tmp_path: Path) -> None:
    data = shifted(tmp_path / "shifted")

    def at_the_end(done: int, total: int) -> None:
        if done == total:
            change(model / "model.safetensors", data)

    with pytest.raises(CheckpointError, match=CHANGED if change is not removed else "does not exist"):
        core.convert(model, tmp_path / "out", progress=at_the_end)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def test_one_of_several_shards_is_named(tmp_path: Path) -> None:
    model = shutil.copytree(STORIES_SHARDED, tmp_path / "model")
    last = open_checkpoint(model).shards[-1]

    def touch(done: int, total: int) -> None:
        with (model / last).open("ab") as file:
            file.write(b"\0")

    with pytest.raises(CheckpointError, match=CHANGED) as caught:
        core.load(model, tokenizer=False, progress=touch)
    assert caught.value.where == str(model / last)


def test_while_the_header_is_read(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ordinary = tensors.read_header

    def slow(*args: object, **options: object) -> object:
        found = ordinary(*args, **options)  # type: ignore[arg-type]
        os.utime(model / "model.safetensors")
        return found

    monkeypatch.setattr(tensors, "read_header", slow)
    with pytest.raises(CheckpointError, match=CHANGED):
        core.plan(model)


def test_a_file_that_mlx_does_not_understand_any_more_is_one_that_has_changed(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLX opens it after the look at it, and the change is what the error tells."""
    monkeypatch.setattr(block, "can_fill", lambda: False)
    ordinary = mx.load

    def late(path: str, **options: object) -> object:
        Path(path).write_bytes(b"no safetensors file")
        return ordinary(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(mx, "load", late)
    with pytest.raises(CheckpointError, match=CHANGED):
        core.load(model, tokenizer=False)
