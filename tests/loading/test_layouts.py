"""One set of weights in every layout: the same parameters bit by bit, transformers' logits, and back byte by byte."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import core
from core.errors import CheckpointError, PluginError, UsageError
from core.loading import prepare
from core.weights import Quantization, checkpoint_tensors
from core.weights.nodes import leaves
from core.weights.tree import all_arrays
from plugins.mixtral.config import MixtralConfig
from plugins.mixtral.weights import weight_map_for
from tests.fixtures import oracle, oracles, real_config, reference
from tests.fixtures.layouts import (
    LAYOUTS,
    arrays_of,
    config_of,
    has_layout,
    in_layout,
    interleaved,
    write_layout,
)
from tests.loading.test_oracles import check, logits_of

OTHERS = [(name, layout) for name in oracles() for layout in LAYOUTS[1:] if has_layout(oracles()[name], layout)]
MISTRAL, MIXTRAL = oracle("mistral_headdim32"), oracle("mixtral_swa8")
QUANTIZATION = {"bits": 4, "group_size": 32}


def parameters_equal(one: core.LanguageModel, other: core.LanguageModel) -> bool:
    ours, theirs = all_arrays(one.model), all_arrays(other.model)
    return list(ours) == list(theirs) and all(mx.array_equal(ours[path], theirs[path]).item() for path in ours)


def both(directory: Path, source: Path = MISTRAL) -> Path:
    """A repository that holds Hugging Face's files and Mistral's own."""
    write_layout(source, directory, "mistral")
    (directory / "reference.npz").unlink()
    return write_layout(source, directory, "hf")


@pytest.mark.parametrize(("name", "layout"), OTHERS)
def test_every_layout_gives_the_same_parameters_and_transformers_logits(name: str, layout: str, tmp_path: Path) -> None:
    lm = check(write_layout(oracles()[name], tmp_path / layout, layout))
    expected = core.load(oracles()[name], tokenizer=False, dtype=mx.float32)
    assert lm.report.plan.layout == layout
    assert f"layout {layout}" in str(lm.report)
    assert parameters_equal(lm, expected)
    assert not lm.report.plan.unread_keys
    ids = reference(oracles()[name])["input_ids"]
    assert np.array_equal(logits_of(lm, ids), logits_of(expected, ids))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", oracles())
def test_every_layout_is_written_back_byte_by_byte_from_any_other(name: str, layout: str, tmp_path: Path) -> None:
    """From Hugging Face's layout to each, and from each to Hugging Face's."""
    source = oracles()[name]
    if not has_layout(source, layout):
        assert layout in ("hf-fused", "mlx")  # what has no experts has no layout of its own for them
        return
    there = prepare(write_layout(source, tmp_path, layout))
    lm = core.load(tmp_path, tokenizer=False, dtype=mx.bfloat16 if name.endswith("bf16") else None)
    for wanted in {layout, "hf"}:
        weight_map = there.bound.weight_map(there.config, wanted)
        assert weight_map is not None
        back = checkpoint_tensors(lm.model, weight_map)
        stored = in_layout(arrays_of(source), config_of(source), wanted)
        assert back.keys() == stored.keys()
        for tensor, array in stored.items():
            assert (back[tensor].dtype, back[tensor].shape) == (array.dtype, array.shape)
            assert mx.array_equal(back[tensor], array).item(), tensor


def quantized(path: Path, file: str, config: str) -> None:
    """Quantizes every matrix of a one-file checkpoint in place."""
    tensors: dict[str, mx.array] = {}
    for name, array in arrays_of(path).items():
        parts = mx.quantize(array, **QUANTIZATION) if array.ndim > 1 and "gate.weight" not in name else [array]
        stem = name.removesuffix(".weight")
        tensors |= {f"{stem}.{role}": part for role, part in zip(("weight", "scales", "biases"), parts, strict=False)}
    mx.save_safetensors(str(path / file), tensors)
    (path / config).write_text(json.dumps(json.loads((path / config).read_text()) | {"quantization": QUANTIZATION}))


@pytest.mark.parametrize("source", [MISTRAL, MIXTRAL], ids=["mistral", "mixtral"])
def test_rows_are_permuted_in_packed_matrices_too(source: Path, tmp_path: Path) -> None:
    native, usual = (write_layout(source, tmp_path / layout, layout) for layout in ("mistral", "hf"))
    quantized(native, "consolidated.safetensors", "params.json")
    quantized(usual, "model.safetensors", "config.json")
    one, other = (core.load(path, tokenizer=False) for path in (native, usual))
    assert parameters_equal(one, other)
    assert any(array.dtype == mx.uint32 for array in all_arrays(one.model).values())
    prepared = prepare(native)
    weight_map = prepared.bound.weight_map(prepared.config, "mistral")
    assert weight_map is not None
    back, stored = checkpoint_tensors(one.model, weight_map), arrays_of(native)
    assert back.keys() == stored.keys()
    assert all(mx.array_equal(back[name], stored[name]).item() for name in stored)


def test_a_quantized_model_has_no_place_in_the_layout_without_suffixes(tmp_path: Path) -> None:
    path = write_layout(MIXTRAL, tmp_path, "hf")
    quantized(path, "model.safetensors", "config.json")
    lm, prepared = core.load(path, tokenizer=False), prepare(path)
    weight_map = prepared.bound.weight_map(prepared.config, "hf-fused")
    assert weight_map is not None
    with pytest.raises(PluginError, match=r"whole tensor 'model\.layers\.0\.mlp\.experts\.gate_up_proj' .* 'scales'"):
        checkpoint_tensors(lm.model, weight_map)


def test_fused_halves_stay_addressable(tmp_path: Path) -> None:
    lm = core.load(write_layout(MIXTRAL, tmp_path, "hf-fused"), tokenizer=False)
    fused = lm.model.layers[0].block_sparse_moe.experts.gate_up_proj
    assert fused.parts == {"gate_proj": 128, "up_proj": 128}
    assert fused.groups == (("gate_proj", "up_proj"),)


def test_a_repository_with_both_formats_loads_one_and_says_how_to_choose_the_other(tmp_path: Path) -> None:
    path = both(tmp_path)
    usual, native = core.load(path, tokenizer=False), core.load(path, tokenizer=False, format="mistral")
    assert (usual.report.plan.layout, native.report.plan.layout) == ("hf", "mistral")
    assert parameters_equal(usual, native)
    expected = "the weights are there twice; read in the format {!r}, not read: {}; format={!r} (--format {}) reads"
    assert expected.format("hf", "consolidated.safetensors", "mistral", "mistral") in str(usual.report)
    assert expected.format("mistral", "model.safetensors", "hf", "hf") in str(native.report)
    assert core.plan(path, format="mistral").layout == "mistral"
    assert core.load_config(path, format="mistral").max_position_embeddings == 512  # type: ignore[attr-defined]


def test_a_format_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = write_layout(MISTRAL, tmp_path, "hf")
    with pytest.raises(CheckpointError, match=r"holds no weights in the format 'mistral' \(found 'hf'\)"):
        core.load(path, tokenizer=False, format="mistral")
    with pytest.raises(UsageError, match="unknown format 'gguf'"):
        core.load(path, tokenizer=False, format="gguf")


def test_a_vision_tower_in_the_same_file_is_left_unread(tmp_path: Path) -> None:
    path = write_layout(MISTRAL, tmp_path, "mistral")
    vision = {"vision_encoder.ln_pre.weight": mx.ones(4), "pre_mm_projector_norm.weight": mx.ones(4)}
    mx.save_safetensors(str(path / "consolidated.safetensors"), arrays_of(path) | vision)
    plan = core.plan(path)
    assert dict(plan.ignored) == dict.fromkeys(vision, "of the vision tower: text only")
    assert plan.ok


@pytest.mark.parametrize("heads", [1, 2, 8])
def test_halves_rotate_as_interleaved_pairs_do(heads: int) -> None:
    """Attention scores by mistral-inference's complex rotation equal those of the permuted projections."""
    mx.random.seed(heads)
    size, seq, theta = 6, 5, 1e4
    x, query, key = mx.random.normal((seq, 16)), *(mx.random.normal((heads * size, 16)) for _ in range(2))
    angles = np.outer(np.arange(seq), theta ** -(np.arange(0, size, 2) / size))

    def scores(pairs: bool) -> np.ndarray:
        rotated = []
        for weight in (query, key):
            y = np.array(x @ (interleaved(weight, heads) if pairs else weight).T).reshape(seq, heads, size)
            z = y[..., 0::2] + 1j * y[..., 1::2] if pairs else y[..., : size // 2] + 1j * y[..., size // 2 :]
            rotated.append(z * np.exp(1j * angles)[:, None])
        return np.einsum("qhd,khd->hqk", rotated[0], rotated[1].conj()).real

    np.testing.assert_allclose(scores(True), scores(False), atol=1e-4, rtol=0)


def test_the_names_of_a_published_size_are_all_there() -> None:
    """Every tensor that mistral-inference's modules have for Mixtral 8x7B, and no other."""
    weight_map = weight_map_for(MixtralConfig.from_dict(real_config("Mixtral-8x7B-v0.1")), "mistral")
    assert weight_map is not None
    names = {f"{leaf}.weight" for row in weight_map.expand() for leaf in leaves(row.source)}
    layer = [f"attention.w{part}" for part in "qkvo"] + ["attention_norm", "ffn_norm", "feed_forward.gate"]
    layer += [f"feed_forward.experts.{expert}.w{part}" for expert in range(8) for part in (1, 2, 3)]
    expected = {f"layers.{number}.{part}.weight" for number in range(32) for part in layer}
    assert names == expected | {"tok_embeddings.weight", "norm.weight", "output.weight"}


@pytest.mark.parametrize("setting", [Quantization(4, 32), "mixed_4_6"], ids=str)
@pytest.mark.parametrize(
    ("name", "layout"), [("mistral_headdim32", "mistral")] + [("mixtral_swa8", x) for x in LAYOUTS]
)
def test_quantizing_on_load_is_one_from_every_layout(
    name: str, layout: str, setting: Quantization | str, tmp_path: Path
) -> None:
    one = core.load(write_layout(oracle(name), tmp_path, layout), tokenizer=False, quantize=setting)
    assert parameters_equal(one, core.load(oracle(name), tokenizer=False, quantize=setting))
