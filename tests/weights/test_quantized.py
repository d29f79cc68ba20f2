"""Quantized checkpoints of every recipe compute what their dequantized matrices compute."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import core
from core.errors import QuantizationError
from core.kernels.device import cpu_sources
from core.nn import FusedLinear, QuantizedExpertLinear
from core.weights import Quantization
from core.weights.tree import find
from tests.fixtures import oracle, reference
from tests.fixtures.quantized import Pair, Recipe, write_pair

TOLERANCE = 1e-3
"""On logits of a scale of 6: the order of summation differs. Measured on a CPU: at most 3.2e-5."""

FOUR, SIX, EIGHT = Quantization(4, 32), Quantization(6, 32), Quantization(8, 32)
DEFAULT = {"bits": 4, "group_size": 32}
AS_SIX, AS_EIGHT = {"bits": 6, "group_size": 32}, {"bits": 8, "group_size": 32}
MISTRAL, MIXTRAL = oracle("mistral_swa8"), oracle("mixtral_8e_top3")
ATTENTION = "model.layers.{}.self_attn"
EXPERTS = "model.layers.{}.block_sparse_moe.experts.{}"
STACKED = "model.layers.{}.block_sparse_moe.switch_mlp"


def overrides(*paths: str, settings: Any) -> dict[str, Any]:
    return dict.fromkeys(paths, settings)


@dataclass(frozen=True)
class Case:
    """A recipe and the config block that tells of it."""

    source: Path
    overrides: Mapping[str, Any] = field(default_factory=dict)
    default: Mapping[str, Any] = field(default_factory=lambda: DEFAULT)
    unquantized: tuple[str, ...] = ()  # left in full precision without a word in the config
    key: str = "quantization"
    mlx_layout: bool = False

    def recipe(self) -> Recipe:
        default = Quantization(**self.default)

        def choose(path: str) -> Quantization | None:
            override = self.overrides.get(path, True)
            if override is False or path in self.unquantized:
                return None
            return default if override is True else Quantization(**{"mode": default.mode} | dict(override))

        return choose

    def write(self, directory: Path) -> Pair:
        block = {**self.default, **self.overrides}
        return write_pair(self.source, directory, self.recipe(), block, key=self.key, mlx_layout=self.mlx_layout)


# mlx-lm's mixed_4_6: v_proj and down_proj of some layers get more bits.
MIXED = overrides(
    *(f"{ATTENTION.format(i)}.v_proj" for i in (0, 2)),
    *(f"model.layers.{i}.mlp.down_proj" for i in (0, 2)),
    settings=AS_SIX,
)
CASES = {
    "4 bits": Case(MISTRAL),
    "8 bits": Case(MISTRAL, default=AS_EIGHT),
    "3 bits": Case(MISTRAL, default={"bits": 3, "group_size": 32}),
    "groups of 64": Case(MISTRAL, default={"bits": 4, "group_size": 64}),
    "under quantization_config": Case(MISTRAL, key="quantization_config"),
    "mixed_4_6": Case(MISTRAL, MIXED),
    "only v_proj unquantized": Case(
        MISTRAL, overrides(*(f"{ATTENTION.format(i)}.v_proj" for i in range(3)), settings=False)
    ),
    "only v_proj unquantized, unsaid": Case(
        MISTRAL, unquantized=tuple(f"{ATTENTION.format(i)}.v_proj" for i in range(3))
    ),
    "q, k and v all different": Case(
        MISTRAL,
        {f"{ATTENTION.format(1)}.q_proj": AS_SIX, f"{ATTENTION.format(1)}.v_proj": AS_EIGHT},
    ),
    "q like v, k apart": Case(MISTRAL, {f"{ATTENTION.format(1)}.k_proj": {"bits": 4, "group_size": 64}}),
    "gate unlike up": Case(MISTRAL, {"model.layers.0.mlp.gate_proj": AS_EIGHT}),
    "head and embedding in full precision": Case(MISTRAL, {"lm_head": False, "model.embed_tokens": False}),
    "true as an override": Case(MISTRAL, {"lm_head": True, "model.embed_tokens": AS_EIGHT}),
    "mxfp4": Case(MISTRAL, default={"bits": 4, "group_size": 32, "mode": "mxfp4"}),
    "mxfp8": Case(MISTRAL, default={"bits": 8, "group_size": 32, "mode": "mxfp8"}),
    "nvfp4": Case(MISTRAL, default={"bits": 4, "group_size": 16, "mode": "nvfp4"}),
    "two modes": Case(
        MISTRAL, {f"{ATTENTION.format(0)}.v_proj": {"bits": 4, "group_size": 32, "mode": "mxfp4"}, "lm_head": AS_EIGHT}
    ),
    "tied": Case(oracle("mistral_tied")),
    "experts apart": Case(MIXTRAL),
    "experts stacked": Case(MIXTRAL, mlx_layout=True),
    "experts apart, overrides": Case(
        MIXTRAL,
        overrides(*(f"{EXPERTS.format(0, i)}.w2" for i in range(8)), settings=AS_EIGHT)
        | overrides(*(f"{EXPERTS.format(1, i)}.w1" for i in range(8)), settings=AS_SIX)
        | {"model.layers.0.block_sparse_moe.gate": False},
    ),
    "experts stacked, overrides": Case(
        MIXTRAL,
        {
            f"{STACKED.format(0)}.down_proj": AS_EIGHT,
            f"{STACKED.format(1)}.gate_proj": AS_SIX,
            "model.layers.0.block_sparse_moe.gate": False,
            f"{ATTENTION.format(1)}.v_proj": AS_SIX,
        },
        mlx_layout=True,
    ),
    "experts apart, one projection in full precision": Case(
        MIXTRAL, overrides(*(f"{EXPERTS.format(1, i)}.w3" for i in range(8)), settings=False)
    ),
    "experts in nvfp4": Case(MIXTRAL, default={"bits": 4, "group_size": 16, "mode": "nvfp4"}),
}


def logits(lm: core.LanguageModel) -> np.ndarray:
    ids = reference(MISTRAL)["input_ids"]
    return np.array(lm.model(mx.array(ids)[None])[0])


@pytest.mark.parametrize("name", CASES)
def test_a_recipe_computes_what_its_dequantized_matrices_compute(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    pair = case.write(tmp_path)
    quantized = core.load(pair.quantized, tokenizer=False)
    dequantized = core.load(pair.dequantized, tokenizer=False)
    assert quantized.report.plan.layout == ("mlx" if case.mlx_layout else "hf")
    np.testing.assert_allclose(logits(quantized), logits(dequantized), atol=TOLERANCE, rtol=0)
    assert quantized.report.plan.parameters == dequantized.report.plan.parameters
    assert not quantized.report.plan.notes


@pytest.mark.parametrize("name", CASES)
def test_every_original_name_leads_to_its_settings(name: str, tmp_path: Path) -> None:
    """However parts are fused or split, each tensor of the file fills one parameter, with its own settings."""
    case = CASES[name]
    plan = core.plan(case.write(tmp_path).quantized)
    assert plan.ok
    found = {tensor: entry.quantization for entry in plan.entries for tensor in entry.tensors}
    assert len(found) == sum(len(entry.tensors) for entry in plan.entries)
    choose = case.recipe()
    for tensor, settings in found.items():
        path, _, role = tensor.rpartition(".")
        if path.endswith("norm"):
            assert settings is None
        elif role in ("weight", "scales", "biases"):
            assert settings == choose(path), tensor


GROUPS = {
    "4 bits": (("q_proj", "k_proj", "v_proj"),),
    "mixed_4_6": (("q_proj", "k_proj"), ("v_proj",)),
    "only v_proj unquantized": (("q_proj", "k_proj"), ("v_proj",)),
}


@pytest.mark.parametrize("name", GROUPS)
def test_parts_that_agree_share_a_matrix(name: str, tmp_path: Path) -> None:
    model = core.load(CASES[name].write(tmp_path).quantized, tokenizer=False).model
    assert model.layers[0].self_attn.qkv_proj.groups == GROUPS[name]
    assert len(model.layers[0].self_attn.qkv_proj.linears) == len(GROUPS[name])


def test_layers_are_split_one_by_one(tmp_path: Path) -> None:
    """Only the layers that a mixed recipe touches pay for it."""
    model = core.load(CASES["mixed_4_6"].write(tmp_path).quantized, tokenizer=False).model
    assert [len(layer.self_attn.qkv_proj.linears) for layer in model.layers] == [2, 1, 2]
    assert [layer.mlp.down_proj.bits for layer in model.layers] == [6, 4, 6]


def test_parts_apart_from_each_other_keep_their_order(tmp_path: Path) -> None:
    model = core.load(CASES["q like v, k apart"].write(tmp_path).quantized, tokenizer=False).model
    layer = model.layers[1].self_attn.qkv_proj
    assert layer.groups == (("q_proj", "v_proj"), ("k_proj",))
    assert [part.shape[-1] for part in layer(mx.zeros((1, 64)))] == [64, 16, 16]


@pytest.mark.parametrize("mlx_layout", [False, True])
def test_experts_are_quantized_modules(mlx_layout: bool, tmp_path: Path) -> None:
    name = "experts stacked, overrides" if mlx_layout else "experts apart, overrides"
    model = core.load(CASES[name].write(tmp_path).quantized, tokenizer=False).model
    down = find(model, "layers.0.block_sparse_moe.experts.down_proj")
    assert isinstance(down, QuantizedExpertLinear)
    assert (down.bits, down.group_size) == (8, 32)
    split, whole = (find(model, f"layers.{i}.block_sparse_moe.experts.gate_up_proj") for i in (1, 0))
    assert isinstance(split, FusedLinear)
    assert [linear.bits for linear in split.linears] == [6, 4]
    assert [linear.bits for linear in whole.linears] == [4]


def test_dtypes_that_differ_keep_parts_apart(tmp_path: Path) -> None:
    """A part in another float type computes in the model's dtype, whatever it shares a matrix with."""
    tensors = mx.load(str(MISTRAL / "model.safetensors"))
    assert isinstance(tensors, dict)
    name = f"{ATTENTION.format(0)}.k_proj.weight"
    tensors[name] = tensors[name].astype(mx.bfloat16)
    mx.save_safetensors(str(tmp_path / "model.safetensors"), tensors)
    (tmp_path / "config.json").write_text((MISTRAL / "config.json").read_text())
    lm = core.load(tmp_path, tokenizer=False)
    whole = core.load(MISTRAL, tokenizer=False)
    assert lm.report.plan.compute_dtype == mx.float32
    assert lm.model.layers[0].self_attn.qkv_proj.groups == (("q_proj", "v_proj"), ("k_proj",))
    np.testing.assert_allclose(logits(lm), logits(whole), atol=0.5, rtol=0)


def test_overrides_that_name_no_layer_are_noted(tmp_path: Path) -> None:
    case = Case(
        MISTRAL, {"model.layers.7.mlp.down_proj": AS_SIX, "model.layers.8.mlp.down_proj": AS_SIX, "visual": False}
    )
    plan = core.plan(case.write(tmp_path).quantized)
    assert plan.ok
    assert len(plan.notes) == 1
    for part in ("model.layers.{7-8}.mlp.down_proj", "visual", "name no layer"):
        assert part in plan.notes[0]


def refusal(path: Path) -> str:
    with pytest.raises(QuantizationError) as caught:
        core.load(path, tokenizer=False)
    text = str(caught.value)
    assert str(path) in text
    assert len(text.splitlines()) <= 6
    return text


def edit_block(path: Path, **changes: Any) -> None:
    file = path / "config.json"
    raw = json.loads(file.read_text())
    raw["quantization"] |= changes
    file.write_text(json.dumps(raw))


def test_an_override_that_says_false_of_a_quantized_layer_is_refused(tmp_path: Path) -> None:
    path = CASES["4 bits"].write(tmp_path).quantized
    edit_block(path, lm_head=False)
    assert "turns quantization off for 'lm_head'" in refusal(path)


def test_an_override_that_promises_what_is_not_there_is_refused(tmp_path: Path) -> None:
    path = CASES["only v_proj unquantized"].write(tmp_path).quantized
    name = f"{ATTENTION.format(1)}.v_proj"
    edit_block(path, **{name: AS_SIX})
    text = refusal(path)
    assert f"'{name}' is quantized (6-bit, groups of 32)" in text
    assert f"'{name}.scales' is missing" in text


def test_bits_that_do_not_fit_the_packed_shape_are_refused(tmp_path: Path) -> None:
    path = CASES["4 bits"].write(tmp_path).quantized
    edit_block(path, bits=8)
    with pytest.raises(core.errors.WeightsError, match=r"expected shape \[256, 16\], found \[256, 8\]"):
        core.load(path, tokenizer=False)


def test_experts_of_one_layer_stored_differently_are_refused(tmp_path: Path) -> None:
    path = Case(MIXTRAL, {f"{EXPERTS.format(0, 3)}.w2": AS_SIX}).write(tmp_path).quantized
    text = refusal(path)
    for part in ("experts.0.w2: 4-bit", "experts.3.w2: 6-bit", "Experts of one layer must be stored alike"):
        assert part in text


def test_scales_without_biases_are_missing_tensors(tmp_path: Path) -> None:
    path = CASES["4 bits"].write(tmp_path).quantized
    tensors = mx.load(str(path / "model.safetensors"))
    assert isinstance(tensors, dict)
    del tensors["lm_head.biases"]
    mx.save_safetensors(str(path / "model.safetensors"), tensors)
    with pytest.raises(core.errors.WeightsError, match=r"missing lm_head\.biases"):
        core.load(path, tokenizer=False)


def test_weights_quantized_in_half_precision_compute_in_float32_on_a_cpu(tmp_path: Path) -> None:
    path = CASES["4 bits"].write(tmp_path).quantized
    tensors = mx.load(str(path / "model.safetensors"))
    assert isinstance(tensors, dict)
    half = {name: a if a.dtype == mx.uint32 else a.astype(mx.bfloat16) for name, a in tensors.items()}
    mx.save_safetensors(str(path / "model.safetensors"), half)
    plan = core.plan(path)
    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    assert plan.compute_dtype == (mx.float32 if on_cpu else mx.bfloat16)
    assert core.plan(path, dtype=mx.float16).compute_dtype == mx.float16
    stored = sum(array.nbytes for array in half.values())
    wide = [a.nbytes for a in half.values() if a.dtype == mx.bfloat16 and (a.ndim == 1 or not cpu_sources())]
    assert plan.bytes == stored + sum(wide if on_cpu else [])  # what it takes in memory, not in the file
