"""What is loaded and saved again is what it was: the same keys, dtypes, shapes and bytes, in every layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import core
from core.checkpoint.source import DEMOS
from core.errors import UsageError, WeightsError
from tests.fixtures import STORIES, STORIES_SHARDED, oracle, oracles
from tests.fixtures.variants import Tensor, Tensors, cast, variant
from tests.saving.compare import PROMPT, assert_same_tensors, logits
from tests.weights.test_quantized import CASES

MIXTRAL = oracle("mixtral_swa8")
FLOATS = {**oracles(), "stories": STORIES, "stories in shards": STORIES_SHARDED}
DEMO_MODELS = {path.name: path for path in DEMOS.iterdir() if path.is_dir()}


def config(path: Path) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads((path / "config.json").read_text())
    return parsed


@pytest.mark.parametrize("source", [*FLOATS.values(), *DEMO_MODELS.values()], ids=[*FLOATS, *DEMO_MODELS])
def test_a_saved_model_is_the_checkpoint_it_came_from(source: Path, tmp_path: Path) -> None:
    lm = core.load(source, tokenizer=False)
    core.save(lm, tmp_path / "saved")
    core.convert(source, tmp_path / "converted", max_shard_size=200_000)
    assert_same_tensors(source, tmp_path / "saved")
    assert_same_tensors(source, tmp_path / "converted")
    assert config(tmp_path / "saved") == config(source) == config(tmp_path / "converted")
    core.save(core.load(tmp_path / "saved", tokenizer=False), tmp_path / "again")
    assert_same_tensors(tmp_path / "saved", tmp_path / "again")


@pytest.mark.parametrize("name", CASES)
def test_every_recipe_is_saved_as_it_was(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    source = case.write(tmp_path).quantized
    core.save(core.load(source, tokenizer=False), tmp_path / "saved")
    core.convert(source, tmp_path / "converted", max_shard_size=50_000)
    for target in (tmp_path / "saved", tmp_path / "converted"):
        assert_same_tensors(source, target)
        block = config(source)[case.key]
        assert config(target)["quantization"] == config(target)["quantization_config"] == block


@pytest.mark.parametrize("name", [name for name in CASES if "experts" in name])
def test_recipes_survive_a_change_of_layout_and_back(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    source = case.write(tmp_path).quantized
    here, there = ("mlx", "hf") if case.mlx_layout else ("hf", "mlx")
    core.convert(source, tmp_path / "there", layout=there)
    assert core.plan(tmp_path / "there").layout == there
    assert not core.plan(tmp_path / "there").notes  # no override names what is not there
    np.testing.assert_array_equal(logits(tmp_path / "there"), logits(source))
    core.convert(tmp_path / "there", tmp_path / "back", layout=here)
    assert_same_tensors(source, tmp_path / "back")


def test_layouts_change_both_ways_without_a_bit(tmp_path: Path) -> None:
    lm = core.load(MIXTRAL, tokenizer=False)
    core.save(lm, tmp_path / "mlx", layout="mlx")
    core.convert(tmp_path / "mlx", tmp_path / "hf", layout="hf", max_shard_size=300_000)
    assert core.plan(tmp_path / "mlx").layout == "mlx"
    assert_same_tensors(MIXTRAL, tmp_path / "hf")
    np.testing.assert_array_equal(logits(tmp_path / "mlx"), logits(MIXTRAL))


def test_each_tensor_goes_back_to_its_own_dtype(tmp_path: Path) -> None:
    """A model that computes in float32, out of a file of three dtypes."""
    dtypes = {"model.norm.weight": "F32", "lm_head.weight": "F16"}

    def mix(tensors: Tensors) -> Tensors:
        wanted = {name: dtypes.get(name, "BF16") for name in tensors}
        return {name: one if wanted[name] == one.dtype else cast(one, wanted[name]) for name, one in tensors.items()}

    source = variant(oracle("mistral_swa8"), tmp_path / "source", tensors=mix)
    core.save(core.load(source, tokenizer=False, dtype=mx.float32), tmp_path / "saved")
    core.convert(source, tmp_path / "converted")
    assert_same_tensors(source, tmp_path / "saved")
    assert_same_tensors(source, tmp_path / "converted")


def test_tensors_that_the_plan_ignores_are_left_out(tmp_path: Path) -> None:
    extra = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": Tensor("F32", (4,), bytes(16)),
        "lm_head.weight": Tensor("F32", (0,), b""),
    }
    source = variant(oracle("mistral_tied"), tmp_path / "source", tensors=lambda found: found | extra)
    lm = core.load(source, tokenizer=False)
    core.save(lm, tmp_path / "saved")
    assert set(lm.report.plan.ignored) == set(extra)
    assert_same_tensors(oracle("mistral_tied"), tmp_path / "saved")
    assert "recomputed from the config" in (tmp_path / "saved" / "README.md").read_text()


def test_a_model_that_was_quantized_in_memory_is_saved_as_it_is(tmp_path: Path) -> None:
    import mlx.nn as nn

    lm = core.load(oracle("mistral_swa8"), tokenizer=False)
    nn.quantize(lm.model, group_size=32, bits=8)
    expected = np.array(lm.model(PROMPT)[0])
    core.save(lm, tmp_path / "saved")
    assert config(tmp_path / "saved")["quantization"] == {"group_size": 32, "bits": 8, "mode": "affine"}
    np.testing.assert_array_equal(logits(tmp_path / "saved"), expected)


def test_what_is_no_part_of_a_layout_is_refused_by_name(tmp_path: Path) -> None:
    lm = core.load(MIXTRAL, tokenizer=False)
    lm.model.layers[0].adapter = mx.zeros((2, 2))
    with pytest.raises(WeightsError, match=r"layers\.0\.adapter"):
        core.save(lm, tmp_path / "saved")
    with pytest.raises(UsageError, match="no layout 'nemo'"):
        core.save(lm, tmp_path / "saved", layout="nemo")
    assert not list(tmp_path.iterdir())
