"""The diff names the first block that departs from what transformers computed for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import core
from core.errors import CheckpointError
from core.nn import Decoder
from core.testing import Reference
from core.testing.diff import diff, main
from tests.fixtures import oracle
from tests.testing import wrong_blocks as blocks
from tests.testing.mutant import REFERENCES

MISTRAL = REFERENCES["mistral"]


def loaded() -> Decoder:
    return core.load(MISTRAL, tokenizer=False, dtype=mx.float32).model


def test_a_right_model_does_not_depart() -> None:
    found = diff(loaded(), MISTRAL)
    assert [stage.name for stage in found.stages] == ["input of block 0", "block 0", "block 1", "block 2", "logits"]
    assert found.first is None
    assert str(found).endswith("no departure")


@pytest.mark.parametrize(
    ("change", "position"),
    [
        (blocks.attention(blocks.NoScale), 1),
        (blocks.rope(base=2.0), 1),
        (blocks.window(lambda _: None), 8),
        (blocks.window(lambda size: size + 1), 8),
        (blocks.window(lambda size: size - 1), 7),
        (blocks.gelu, 0),
        (blocks.as_block(blocks.PostNorm), 0),
    ],
)
@pytest.mark.parametrize("index", [0, 1, 2])
def test_it_names_the_block_and_the_first_position(
    change: Callable[[nn.Module, Any], None], position: int, index: int
) -> None:
    model = loaded()
    change(model.layers[index], core.load_config(MISTRAL))
    first = diff(model, MISTRAL).first
    assert first is not None
    assert (first.name, first.position) == (f"block {index}", position)
    assert f"block {index} is the first to depart" in str(diff(model, MISTRAL))


def test_the_model_is_left_as_it_was() -> None:
    model = loaded()
    before = model.layers
    diff(model, MISTRAL)
    assert model.layers is before


def test_it_tells_the_head_and_the_embedding_from_the_blocks() -> None:
    model = loaded()
    model.norm.eps = 1.0
    assert str(diff(model, MISTRAL)).endswith("look at the final norm and the language head")
    model.embed_tokens.weight = model.embed_tokens.weight * 1.01
    assert "the blocks' input departs: look at the embedding" in str(diff(model, MISTRAL))


def test_without_hidden_states_the_logits_are_compared() -> None:
    path = oracle("mistral_tied")
    lm = core.load(path, tokenizer=False, dtype=mx.float32)
    assert diff(lm.model, path).first is None
    lm.model.layers[1].mlp.__class__ = blocks.Gelu
    found = diff(lm.model, path)
    assert not found.detailed
    assert [stage.name for stage in found.stages] == ["logits"]
    assert "the logits depart" in str(found)


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([str(MISTRAL), str(MISTRAL)]) == 0
    assert "no departure" in capsys.readouterr().out
    arrays = {name: np.array(array) for name, array in Reference.read(MISTRAL).arrays.items()}
    arrays["hidden_states"][2:] += 1
    np.savez(tmp_path / "reference.npz", **arrays)
    assert main([str(MISTRAL), str(tmp_path)]) == 1
    assert "block 1 is the first to depart" in capsys.readouterr().out


def test_damaged_references_are_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([str(MISTRAL), str(tmp_path)]) == 1
    assert "there is no reference (expected reference.npz)" in capsys.readouterr().err
    file = tmp_path / "reference.npz"
    file.write_bytes(b"no archive")
    with pytest.raises(CheckpointError, match="cannot be read"):
        Reference.read(tmp_path)
    np.savez(file, input_ids=np.arange(3))
    with pytest.raises(CheckpointError, match="the reference lacks logits"):
        Reference.read(tmp_path)
    arrays = {name: np.array(array) for name, array in Reference.read(MISTRAL).arrays.items()}
    np.savez(file, **(arrays | {"hidden_states": arrays["hidden_states"][:2]}))
    with pytest.raises(CheckpointError, match=r"another number of blocks \(expected 3, found 1\)"):
        diff(loaded(), tmp_path)
    assert main([str(tmp_path / "none"), str(MISTRAL)]) == 1
    assert "error: " in capsys.readouterr().err
