"""Which files are the model: indexes, numbered sets, lone files, and what is said when it is not clear."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from core.checkpoint import Checkpoint, open_checkpoint
from core.errors import CheckpointError, UsageError

from .sparse import write_checkpoint, write_shard

SMALL = {f"layers.{i}.weight": ("F32", [2, i + 1]) for i in range(4)}
ONE, TWO, THREE = (f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3))
INDEX = "model.safetensors.index.json"


def make(directory: Path, **tensors_of: list[str]) -> Checkpoint:
    """Files (dots written as they are, through a dict) that hold the named tensors."""
    for file, names in tensors_of.items():
        write_shard(directory / file, {name: ("F32", [1]) for name in names})
    return open_checkpoint(directory)


def write_index(directory: Path, weight_map: Mapping[str, Any]) -> None:
    (directory / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


def error_of(checkpoint: Checkpoint) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        checkpoint.tensors  # noqa: B018
    text = str(caught.value)
    assert checkpoint.where().rstrip("/") in text
    assert text.count("\n") <= 1
    assert len(text) < 1000
    return caught.value


def test_single_file(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "m", SMALL))
    assert checkpoint.shards == ("model.safetensors",)
    assert list(checkpoint.tensors) == list(SMALL)
    assert (checkpoint.stray, checkpoint.formats, checkpoint.format) == ((), ("hf",), "hf")
    assert checkpoint.shard_path("model.safetensors") == tmp_path / "m" / "model.safetensors"


def test_index_names_the_shards_and_others_are_stray(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, SMALL, shards=2)
    checkpoint = make(tmp_path, **{"model.safetensors": ["old"], "model-00003-of-00003.safetensors": ["older"]})
    assert checkpoint.shards == ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    assert checkpoint.stray == ("model-00003-of-00003.safetensors", "model.safetensors")
    assert {name: info.shape for name, info in checkpoint.tensors.items()} == {
        n: tuple(s) for n, (_, s) in SMALL.items()
    }
    with pytest.raises(CheckpointError, match="is not one of the model's shards"):
        checkpoint.shard_path("model.safetensors")


def test_stray_files_are_never_opened(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, SMALL, shards=2)
    (tmp_path / "zz.safetensors").write_bytes(b"not a header")
    assert len(open_checkpoint(tmp_path).tensors) == 4


def test_tensors_that_the_index_does_not_name_are_included(tmp_path: Path) -> None:
    make(tmp_path, **{ONE: ["a", "extra"]})
    write_index(tmp_path, {"a": ONE})
    assert set(open_checkpoint(tmp_path).tensors) == {"a", "extra"}


def test_complete_set_without_an_index(tmp_path: Path) -> None:
    checkpoint = make(tmp_path, **{THREE: ["c"], ONE: ["a"], TWO: ["b"], "other.safetensors": ["x"]})
    assert checkpoint.shards == (ONE, TWO, THREE)
    assert checkpoint.stray == ("other.safetensors",)
    assert list(checkpoint.tensors) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "names",
    [
        ["model-00000-of-00002.safetensors", "model-00001-of-00002.safetensors"],  # counted from zero
        [f"model-{i:05d}-of-000012.safetensors" for i in range(1, 13)],  # two widths, as in DeepSeek-V3
        ["weights-1-of-1.safetensors"],
    ],
)
def test_sets_are_numbered_in_several_ways(tmp_path: Path, names: list[str]) -> None:
    assert make(tmp_path, **{name: [name] for name in names}).shards == tuple(names)


def test_model_safetensors_goes_before_a_set(tmp_path: Path) -> None:
    checkpoint = make(tmp_path, **{"model.safetensors": ["a"], ONE: ["a"]})
    assert checkpoint.shards == ("model.safetensors",)
    assert checkpoint.stray == (ONE,)


def test_the_usual_name_decides_between_two_sets(tmp_path: Path) -> None:
    names = {f"{stem}-0000{i}-of-00002.safetensors": [f"{stem}{i}"] for stem in ("a", "model") for i in (1, 2)}
    assert set(make(tmp_path, **names).tensors) == {"model1", "model2"}


def test_single_file_of_another_name(tmp_path: Path) -> None:
    checkpoint = make(
        tmp_path, **{"weights.safetensors": ["a"], "._weights.safetensors": [], "adapters.safetensors": ["b"]}
    )
    assert checkpoint.shards == ("weights.safetensors",)
    assert checkpoint.stray == ("._weights.safetensors", "adapters.safetensors")


def test_several_candidates(tmp_path: Path) -> None:
    error = error_of(make(tmp_path, **{"a.safetensors": ["a"], "b.safetensors": ["b"]}))
    assert "several safetensors files" in error.problem
    assert error.found == "a.safetensors, b.safetensors"
    names = {f"{stem}-0000{i}-of-00002.safetensors": [f"{stem}{i}"] for stem in ("c", "d") for i in (1, 2)}
    assert "several safetensors files" in error_of(make(tmp_path, **names)).problem


def test_incomplete_set(tmp_path: Path) -> None:
    error = error_of(make(tmp_path, **{ONE: ["a"], THREE: ["c"], "x.safetensors": ["x"]}))
    assert error.problem == "holds 2 of the 3 files of the set model-*-of-00003.safetensors"
    assert error.found == f"no {TWO}"
    assert "resume the download" in str(error)


def test_a_set_of_a_billion_files_is_not_counted_out(tmp_path: Path) -> None:
    error = error_of(make(tmp_path, **{"model-1-of-999999999.safetensors": ["a"]}))
    assert error.found == (
        "no " + ", ".join(f"model-{i}-of-999999999.safetensors" for i in range(2, 7)) + " and 999,999,993 more"
    )


def test_shards_that_are_absent_are_listed(tmp_path: Path) -> None:
    make(tmp_path, **{ONE: ["a"]})
    write_index(tmp_path, {"a": ONE, "b": TWO, "b2": TWO, "c": THREE})
    error = error_of(open_checkpoint(tmp_path))
    assert error.problem == "names 3 shards, of which 2 are absent"
    assert error.found == f"no {TWO}, {THREE}"
    assert error.where == str(tmp_path / INDEX)
    assert "resume the download" in str(error)
    assert "delete the index" not in str(error)


def test_a_stale_index_beside_a_whole_model(tmp_path: Path) -> None:
    make(tmp_path, **{"model.safetensors": ["a"]})
    write_index(tmp_path, {"a": ONE, "b": TWO})
    assert "if model.safetensors is the whole model, delete the index" in str(error_of(open_checkpoint(tmp_path)))


def test_tensor_in_two_shards(tmp_path: Path) -> None:
    make(tmp_path, **{ONE: ["a", "b"], TWO: ["b", "c"]})
    write_index(tmp_path, {"a": ONE, "b": ONE, "c": TWO})
    error = error_of(open_checkpoint(tmp_path))
    assert error.problem == "tensor 'b' in two shards"
    assert error.found == f"{ONE} and {TWO}"


def test_tensor_in_two_files_of_a_set(tmp_path: Path) -> None:
    error = error_of(make(tmp_path, **{ONE: ["a", "b"], TWO: ["b", "a"], THREE: ["c"]}))
    assert (
        error.problem == "tensor 'a' and 1 more in two shards" or error.problem == "tensor 'b' and 1 more in two shards"
    )


def test_tensor_that_its_shard_does_not_hold(tmp_path: Path) -> None:
    make(tmp_path, **{ONE: ["a"], TWO: ["c"]})
    write_index(tmp_path, {"a": ONE, "b": ONE, "c": TWO})
    error = error_of(open_checkpoint(tmp_path))
    assert (error.problem, error.expected) == ("places tensor 'b' where it is not", ONE)
    assert error.found == "no shard that holds it"
    write_index(tmp_path, {"a": ONE, "c": ONE, "d": TWO})
    error = error_of(open_checkpoint(tmp_path))
    assert (error.problem, error.found) == ("places tensor 'c' and 1 more where it is not", TWO)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is empty"),
        ("{", "is not valid JSON at line 1, column 2"),
        ("[1]", "is not a JSON object (expected {...}, found a list of 1)"),
        ("{}", "has no weight_map"),
        ('{"weight_map": {}}', "has no weight_map"),
        ('{"weight_map": [1, 2]}', "found a list of 2"),
        ('{"weight_map": {"a": 1}}', "names no safetensors file of this checkpoint for tensor 'a'"),
        ('{"weight_map": {"a": "../other/model.safetensors"}}', "found '../other/model.safetensors'"),
        ('{"weight_map": {"a": "/etc/x.safetensors"}}', "names no safetensors file of this checkpoint"),
        ('{"weight_map": {"a": "..\\\\x.safetensors"}}', "names no safetensors file of this checkpoint"),
        ('{"weight_map": {"a": "pytorch_model.bin"}}', "found 'pytorch_model.bin'"),
        ('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "has the key 'a' twice"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "is a git-LFS pointer"),
    ],
)
def test_damaged_index(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / INDEX).write_text(text)
    error = error_of(open_checkpoint(tmp_path))
    assert problem in str(error)
    assert error.where == str(tmp_path / INDEX)


def test_an_index_of_any_size_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / INDEX).open("wb") as file:
        file.truncate(100_000_001)
    assert "is too large for an index" in str(error_of(open_checkpoint(tmp_path)))


@pytest.mark.parametrize(
    ("files", "found", "way_out"),
    [
        (
            ["pytorch_model.bin", "config.json"],
            "only PyTorch pickles (found pytorch_model.bin)",
            "convert them to safetensors",
        ),
        (["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"], "only PyTorch pickles", "convert"),
        (["model.pt"], "only PyTorch pickles", "convert them"),
        (["consolidated.00.pth", "params.json"], "only PyTorch pickles", "convert them"),
        (
            ["mistral-7b.Q4_K_M.gguf", "x.bin"],
            "only GGUF (found mistral-7b.Q4_K_M.gguf)",
            "pass the model that it was made from, in safetensors",
        ),
        (["weights.npz"], "only NumPy archives", "convert them"),
        (["adapter_model.safetensors"], "only an adapter, not a model", "pass the base model"),
        (["consolidated.safetensors", "config.json"], "native weights without their params.json", "add params.json"),
        (
            ["config.json", "tokenizer.json"],
            "holds no weights (expected *.safetensors, found config.json, tok",
            "pass the",
        ),
        ([], "holds no weights (expected *.safetensors, found no files)", "pass the directory"),
    ],
)
def test_nothing_to_read(tmp_path: Path, files: list[str], found: str, way_out: str) -> None:
    for name in files:
        (tmp_path / name).write_bytes(b"")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.formats == ()
    text = str(error_of(checkpoint))
    assert found in text
    assert way_out in text


def test_mistral_native_beside_hugging_face(tmp_path: Path) -> None:
    (tmp_path / "params.json").write_text("{}")
    files = {
        "model.safetensors": ["lm_head.weight"],
        "consolidated.safetensors": ["output.weight"],
        "x.safetensors": ["x"],
    }
    checkpoint = make(tmp_path, **files)
    assert checkpoint.formats == ("hf", "mistral")
    assert (checkpoint.format, checkpoint.shards) == ("hf", ("model.safetensors",))
    assert (checkpoint.stray, checkpoint.alternates) == (("x.safetensors",), ("consolidated.safetensors",))
    native = open_checkpoint(tmp_path, format="mistral")
    assert (native.format, native.shards, list(native.tensors)) == (
        "mistral",
        ("consolidated.safetensors",),
        ["output.weight"],
    )
    assert native.alternates == ("model.safetensors", "x.safetensors")


def test_mistral_native_alone(tmp_path: Path) -> None:
    (tmp_path / "params.json").write_text("{}")
    names = [f"consolidated-0000{i}-of-00002.safetensors" for i in (1, 2)]
    checkpoint = make(tmp_path, **{name: [name] for name in names})
    assert (checkpoint.formats, checkpoint.format, checkpoint.shards) == (("mistral",), "mistral", tuple(names))
    error = error_of(open_checkpoint(tmp_path, format="hf"))
    assert (error.problem, error.found) == ("holds no weights in the format 'hf'", "'mistral'")


def test_unknown_format(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown format 'gguf' \(expected 'hf' or 'mistral'\)"):
        open_checkpoint(tmp_path, format="gguf")
