"""What is written in a layout is that layout, made by the documented renaming; and it comes back, byte by byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import core
from core.errors import UsageError
from core.weights import Quantization
from tests.fixtures import FIXTURES, oracle, oracles, real_config
from tests.fixtures.layouts import (
    LAYOUTS,
    arrays_of,
    config_of,
    has_layout,
    in_layout,
    params_of,
    write_layout,
)
from tests.fixtures.variants import variant
from tests.saving.compare import assert_same_tensors, logits

MISTRAL, MIXTRAL = oracle("mistral_headdim32"), oracle("mixtral_swa8")
WRAPPED = FIXTURES / "wrapped" / "mistral3"
CASES = [(name, layout) for name in oracles() for layout in LAYOUTS if has_layout(oracles()[name], layout)]


def params(path: Path) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads((path / "params.json").read_text())
    return parsed


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_every_layout_is_written_and_comes_back(name: str, layout: str, tmp_path: Path) -> None:
    source = oracles()[name]
    core.convert(source, tmp_path / "there", layout=layout, max_shard_size=300_000)
    expected, found = in_layout(arrays_of(source), config_of(source), layout), arrays_of(tmp_path / "there")
    assert found.keys() == expected.keys()
    for tensor, array in expected.items():
        assert (found[tensor].dtype, found[tensor].shape) == (array.dtype, array.shape)
        assert mx.array_equal(found[tensor], array).item(), tensor
    plan = core.plan(tmp_path / "there", strict=True)
    assert (plan.ok, plan.layout) == (True, layout)
    np.testing.assert_array_equal(logits(tmp_path / "there"), logits(source))
    core.convert(tmp_path / "there", tmp_path / "back", layout="hf")
    assert_same_tensors(source, tmp_path / "back")
    same = {"max_position_embeddings", "architectures"}
    there, here = (core.load_config(path).model_dump(exclude=same) for path in (tmp_path / "back", source))
    assert there == here


@pytest.mark.parametrize("source", [MISTRAL, MIXTRAL], ids=["mistral", "mixtral"])
def test_mistrals_own_files_are_saved_as_they_were(source: Path, tmp_path: Path) -> None:
    native = write_layout(source, tmp_path / "native", "mistral")
    (native / "params.json").write_text(json.dumps(params(native) | {"vision_encoder": {"hidden_size": 8}}))
    core.save(core.load(native, tokenizer=False), tmp_path / "saved")
    core.convert(native, tmp_path / "converted", max_shard_size=200_000)
    for target in (tmp_path / "saved", tmp_path / "converted"):
        assert_same_tensors(native, target)
        assert params(target) == params(native)
    core.convert(native, tmp_path / "hf", layout="hf")
    assert "vision_encoder" not in config_of(tmp_path / "hf")
    assert config_of(tmp_path / "hf")["torch_dtype"] == "float32"
    assert config_of(tmp_path / "hf")["architectures"] == config_of(source)["architectures"]
    assert core.plan(tmp_path / "hf", strict=True).ok


@pytest.mark.parametrize("source", [MISTRAL, MIXTRAL], ids=["mistral", "mixtral"])
def test_quantized_weights_go_through_mistrals_names_and_back(source: Path, tmp_path: Path) -> None:
    core.convert(source, tmp_path / "hf", quantize=Quantization(4, 32))
    core.convert(tmp_path / "hf", tmp_path / "native", layout="mistral")
    assert params(tmp_path / "native")["quantization"] == {"group_size": 32, "bits": 4, "mode": "affine"}
    core.convert(tmp_path / "native", tmp_path / "again", max_shard_size=100_000)
    assert_same_tensors(tmp_path / "native", tmp_path / "again")
    core.convert(tmp_path / "again", tmp_path / "back", layout="hf")
    assert_same_tensors(tmp_path / "hf", tmp_path / "back")
    assert config_of(tmp_path / "back")["quantization"] == config_of(tmp_path / "hf")["quantization"]
    core.convert(source, tmp_path / "at once", layout="mistral", quantize=Quantization(4, 32))
    assert_same_tensors(tmp_path / "native", tmp_path / "at once")


def test_the_format_that_is_read_can_be_chosen(tmp_path: Path) -> None:
    write_layout(oracle("mistral_swa8"), tmp_path / "both", "hf")
    for name, array in write_native(tmp_path / "both").items():
        assert mx.all(array == 0).item(), name
    core.convert(tmp_path / "both", tmp_path / "usual", layout="hf")
    core.convert(tmp_path / "both", tmp_path / "native", layout="hf", format="mistral")
    assert_same_tensors(oracle("mistral_swa8"), tmp_path / "usual")
    assert all(mx.all(array == 0).item() for array in arrays_of(tmp_path / "native").values())


def write_native(directory: Path) -> dict[str, mx.array]:
    """Mistral's own files beside others, of the same shapes and all zero, so that it shows which were read."""
    source = oracle("mistral_swa8")
    zeros = {
        name: mx.zeros_like(array) for name, array in in_layout(arrays_of(source), config_of(source), "mistral").items()
    }
    mx.save_safetensors(str(directory / "consolidated.safetensors"), zeros)
    (directory / "params.json").write_text(json.dumps(params_of(config_of(source))))
    return zeros


def test_what_a_layout_cannot_say_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'hf-fused' has no place for quantized matrices .*gate_up_proj, 4-bit"):
        core.convert(MIXTRAL, tmp_path / "out", layout="hf-fused", quantize=4)
    mixed = core.load(MIXTRAL, tokenizer=False, quantize={"*.w3": 4, "*.w1": 8})
    with pytest.raises(UsageError, match="quantized differently"):
        core.save(mixed, tmp_path / "out", layout="hf-fused")
    scaled = variant(MISTRAL, tmp_path / "scaled", config={"rope_scaling": {"type": "linear", "factor": 2.0}})
    with pytest.raises(UsageError, match=r"cannot say what the config says of rope_parameters"):
        core.convert(scaled, tmp_path / "out", layout="mistral")
    with pytest.raises(UsageError, match="no layout 'mistral'"):
        core.convert(WRAPPED, tmp_path / "out", layout="mistral")
    assert not (tmp_path / "out").exists()


def test_a_wrapped_model_is_written_without_its_images(tmp_path: Path) -> None:
    core.convert(WRAPPED, tmp_path / "out")
    stored, written = arrays_of(WRAPPED), arrays_of(tmp_path / "out")
    assert written.keys() == {name for name in stored if name.startswith("language_model.")}
    assert all(mx.array_equal(stored[name], written[name]).item() for name in written)
    assert "of the vision tower: text only" in (tmp_path / "out" / "README.md").read_text()
    np.testing.assert_array_equal(logits(tmp_path / "out"), logits(WRAPPED))


@pytest.mark.parametrize("name", ["Mistral-7B-v0.3", "Mixtral-8x7B-v0.1", "Mistral-Nemo-Base-2407"])
def test_published_configs_can_be_said_in_params(name: str) -> None:
    from core.config.native import from_params, to_params
    from core.loading.configure import configured

    bound, config = configured(real_config(name), name, None)
    again = bound.parse_config(from_params(to_params(config)))
    assert again.model_dump(exclude={"architectures"}) == config.model_dump(exclude={"architectures"})
