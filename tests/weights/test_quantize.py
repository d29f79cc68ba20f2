"""``core.load(…, quantize=…)`` gives MLX's own quantization of the checkpoint's matrices, bit for bit.

The reference is ``mlx.core.quantize`` of each tensor as the file has it, or ``mlx.nn.quantize`` of the float model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import core
from core.errors import QuantizationError, UsageError, WeightsError
from core.kernels.device import cpu_sources
from core.loading.prepared import prepare
from core.weights import Plan, Quantization, checkpoint_tensors
from core.weights.recipes import Quantize, recipe
from core.weights.tree import all_arrays
from tests.fixtures import STORIES, oracle, reference
from tests.fixtures.quantized import write_pair
from tests.fixtures.variants import Tensors, cast, edit_config, variant

MISTRAL, TIED, MIXTRAL = oracle("mistral_swa8"), oracle("mistral_tied"), oracle("mixtral_8e_top3")
AFFINE = [Quantization(bits, group) for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64)]
MODES = [Quantization(4, 32, "mxfp4"), Quantization(8, 32, "mxfp8"), Quantization(4, 16, "nvfp4")]
ROUTER = re.compile(r".*block_sparse_moe\.gate")


def as_stored(source: Path, directory: Path, dtype: str) -> Path:
    """A copy of an F32 checkpoint in another dtype."""

    def convert(tensors: Tensors) -> Tensors:
        return {name: cast(tensor, dtype) for name, tensor in tensors.items()}

    return variant(source, directory, tensors=convert)


def originals(lm: core.LanguageModel, source: Path) -> dict[str, mx.array]:
    """A loaded model's arrays under the checkpoint's names."""
    prepared = prepare(source)
    weight_map = prepared.bound.weight_map(prepared.config, prepared.plan.layout)
    assert weight_map is not None
    return checkpoint_tensors(lm.model, weight_map)


def expected(source: Path, settings: Quantization) -> dict[str, mx.array]:
    """What MLX makes of each of a checkpoint's matrices, in the dtype that the file has it in; routers stay."""
    loaded = mx.load(str(source / "model.safetensors"))
    assert isinstance(loaded, dict)
    made: dict[str, mx.array] = {}
    for name, array in loaded.items():
        path = name.removesuffix(".weight")
        if array.ndim < 2 or ROUTER.fullmatch(path):
            made[name] = array
            continue
        parts = mx.quantize(array, settings.group_size, settings.bits, mode=settings.mode)
        made |= {f"{path}.{role}": part for role, part in zip(("weight", "scales", "biases"), parts, strict=False)}
    return made


def assert_equal(found: Mapping[str, mx.array], wanted: Mapping[str, mx.array], compute: mx.Dtype) -> None:
    assert set(found) == set(wanted)
    for name, array in wanted.items():
        if array.dtype not in (mx.uint32, mx.uint8):
            array = array.astype(compute)
        assert found[name].dtype == array.dtype, name
        assert mx.array_equal(found[name], array).item(), name


@pytest.mark.parametrize("settings", AFFINE + MODES, ids=str)
@pytest.mark.parametrize("source", [MISTRAL, MIXTRAL, TIED], ids=lambda path: path.name)
def test_every_matrix_is_what_mlx_makes_of_it(source: Path, settings: Quantization) -> None:
    lm = core.load(source, tokenizer=False, quantize=settings)
    assert_equal(originals(lm, source), expected(source, settings), lm.report.plan.compute_dtype)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_a_matrix_is_quantized_in_the_dtype_that_the_file_has_it_in(dtype: str, tmp_path: Path) -> None:
    """Scales of bfloat16 weights are bfloat16 numbers, also where the model computes in float32."""
    path = as_stored(MISTRAL, tmp_path, dtype)
    settings = Quantization(4, 32)
    lm = core.load(path, tokenizer=False, quantize=settings, dtype=mx.float32)
    assert_equal(originals(lm, path), expected(path, settings), mx.float32)
    storage = {entry.storage for entry in lm.report.plan.entries if entry.parameter.endswith(("scales", "biases"))}
    assert storage == {dtype}


@pytest.mark.parametrize("source", [MISTRAL, TIED, MIXTRAL], ids=lambda path: path.name)
@pytest.mark.parametrize("settings", [Quantization(4, 64), *MODES], ids=str)
def test_a_quantized_load_is_mlx_nn_quantize_of_the_float_model(source: Path, settings: Quantization) -> None:
    """The same parameters under the same paths, and so the same logits."""
    lm = core.load(source, tokenizer=False, quantize=settings)
    whole = core.load(source, tokenizer=False)
    nn.quantize(
        whole.model,
        settings.group_size,
        settings.bits,
        mode=settings.mode,
        class_predicate=lambda path, module: hasattr(module, "to_quantized") and not path.endswith("moe.gate"),
    )
    found, wanted = all_arrays(lm.model), all_arrays(whole.model)
    assert set(found) == set(wanted)
    for name, array in wanted.items():
        assert mx.array_equal(found[name], array).item(), name
    tokens = mx.array(reference(source)["input_ids"])[None]
    assert mx.array_equal(lm.model(tokens), whole.model(tokens)).item()


# Mean absolute error over mean absolute logit of the float model: what rounding to so few bits costs a trained model of
# 64 features. Measured on a CPU: 8 bits 0.0064, 6 0.023, 5 0.049, 4 0.10, 3 0.24, 2 0.55; mxfp8 0.029, mxfp4 0.15,
# nvfp4 0.10. The bounds are half as much again.
BOUNDS = {"8": 0.01, "6": 0.035, "5": 0.075, "4": 0.15, "3": 0.36, "2": 0.83, "mxfp8": 0.045, "mxfp4": 0.22}
BOUNDS["nvfp4"] = 0.16


@pytest.mark.parametrize("name", BOUNDS)
def test_logits_stay_near_those_of_the_float_model(name: str) -> None:
    asked: Quantize = Quantization(int(name), 32) if name.isdigit() else name
    whole = core.load(STORIES)
    assert whole.tokenizer is not None
    story = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    tokens = mx.array(whole.tokenizer.encode(story))[None]
    wanted = np.array(whole.model(tokens)[0])
    found = np.array(core.load(STORIES, tokenizer=False, quantize=asked).model(tokens)[0])
    assert 0 < np.abs(found - wanted).mean() <= BOUNDS[name] * np.abs(wanted).mean()


def settings_of(plan: Plan) -> dict[str, Quantization | None]:
    """Original name of each matrix → its settings."""
    return {
        tensor.removesuffix(".weight"): entry.quantization
        for entry in plan.entries
        if entry.parameter.endswith(".weight")
        for tensor in entry.tensors
        if tensor.endswith(".weight")
    }


def test_the_plan_is_the_load() -> None:
    plan = core.plan(MIXTRAL, quantize=4)
    lm = core.load(MIXTRAL, tokenizer=False, quantize=4)
    assert plan.entries == lm.report.plan.entries
    assert plan.bytes == sum(array.nbytes for array in all_arrays(lm.model).values())
    assert plan.parameters == core.plan(MIXTRAL).parameters
    assert plan.bytes < core.plan(MIXTRAL).bytes / 4


def test_routers_stay_in_full_precision() -> None:
    found = settings_of(core.plan(MIXTRAL, quantize=4))
    routers = {name for name in found if ROUTER.fullmatch(name)}
    assert routers
    assert {name for name, settings in found.items() if settings is None and not name.endswith("norm")} == routers


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, set()),
        ({"quantize_embeddings": False}, {"model.embed_tokens"}),
        ({"quantize_head": False}, {"lm_head"}),
        ({"quantize_embeddings": False, "quantize_head": False}, {"model.embed_tokens", "lm_head"}),
    ],
)
def test_embeddings_and_head_are_quantized_by_option(options: dict[str, Any], kept: set[str]) -> None:
    found = settings_of(core.plan(MISTRAL, quantize=4, **options))
    assert {name for name in found if found[name] is None and not name.endswith("norm")} == kept
    tied = settings_of(core.plan(TIED, quantize=4, **options))
    assert (tied["model.embed_tokens"] is None) == bool(kept)


def test_what_no_group_divides_stays_in_full_precision_and_is_noted() -> None:
    settings = Quantization(4, 128)
    plan = core.plan(MISTRAL, quantize=settings)
    assert plan.ok
    found = settings_of(plan)
    columns = {name: mx.load(str(MISTRAL / "model.safetensors"))[f"{name}.weight"].shape[-1] for name in found}  # type: ignore[index]
    for name, one in found.items():
        assert (one is not None) == (columns[name] % 128 == 0 and not name.endswith("norm")), name
    assert any("groups of 128 do not divide 64 input features" in note for note in plan.notes)
    core.load(MISTRAL, tokenizer=False, quantize=settings)


def test_the_first_pattern_that_matches_decides() -> None:
    plan = core.plan(MISTRAL, quantize={"*.1.*.v_proj": 6, "*.v_proj": "mxfp4", "*.o_proj": False, "model.layers.*": 4})
    found = settings_of(plan)
    assert found["model.layers.1.self_attn.v_proj"] == Quantization(6, 64)
    assert found["model.layers.0.self_attn.v_proj"] == Quantization(4, 32, "mxfp4")
    assert found["model.layers.0.self_attn.q_proj"] == Quantization(4, 64)
    assert found["model.layers.0.self_attn.o_proj"] is None
    assert found["lm_head"] is None  # nothing matches it


def test_a_pattern_that_matches_nothing_is_noted() -> None:
    plan = core.plan(MISTRAL, quantize={"*.w_proj": 6, "*": 4})
    assert any("'*.w_proj'" in note for note in plan.notes)


# Which matrices of a model of 16 blocks mlx-lm 0.32.2 gives more bits, by running its mixed_quant_predicate_builder.
MORE = [0, 1, 4, 7, 10, 13, 14, 15]


@pytest.mark.parametrize(
    ("name", "few", "many"), [("mixed_2_6", 2, 6), ("mixed_3_4", 3, 4), ("mixed_3_6", 3, 6), ("mixed_4_6", 4, 6)]
)
def test_mixed_recipes_are_mlx_lms(name: str, few: int, many: int) -> None:
    choose = recipe(name).choose
    for layer in range(16):
        block = f"layers.{layer}"
        for path in ("self_attn.qkv_proj.v_proj", "mlp.down_proj", "block_sparse_moe.experts.down_proj"):
            bits = many if layer in MORE else few
            assert choose("", f"{block}.{path}", 16) == Quantization(bits, 64), (layer, path)
        for path in ("self_attn.qkv_proj.q_proj", "self_attn.o_proj", "mlp.gate_up_proj.gate_proj"):
            assert choose("", f"{block}.{path}", 16) == Quantization(few, 64)
    assert choose("", "lm_head", 16) == Quantization(many, 64)
    assert choose("", "embed_tokens", 16) == Quantization(few, 64)


@pytest.mark.parametrize("source", [MISTRAL, MIXTRAL], ids=lambda path: path.name)
def test_a_mixed_recipe_splits_what_it_must(source: Path) -> None:
    lm = core.load(source, tokenizer=False, quantize="mixed_4_6")
    groups = [layer.self_attn.qkv_proj.groups for layer in lm.model.layers]
    assert (("q_proj", "k_proj"), ("v_proj",)) in groups
    tokens = mx.array([[1, 2, 3]])
    assert mx.isfinite(lm.model(tokens)).all().item()


@pytest.mark.parametrize(
    "asked", [7, 0, 10**100, "mixed_9", True, 4.5, Quantization(4, 17), Quantization(4, 64, "mxfp4")]
)
def test_what_mlx_does_not_have_is_refused(asked: Any) -> None:
    with pytest.raises(UsageError, match="quantize="):
        core.plan(MISTRAL, quantize=asked)


def test_nothing_to_quantize_is_noted() -> None:
    assert any("no matrix is quantized" in note for note in core.plan(MISTRAL, quantize={"visual.*": 4}).notes)


def test_not_a_number_is_found_although_quantizing_would_hide_it(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.down_proj.weight"

    def damage(tensors: Tensors) -> Tensors:
        values = tensors[name].floats
        values[3, 5] = np.nan
        return tensors | {name: type(tensors[name]).of(values, "F32")}

    path = variant(MISTRAL, tmp_path, tensors=damage)
    with pytest.raises(WeightsError, match=f"tensor '{re.escape(name)}' holds NaN or infinity in 1 of"):
        core.load(path, tokenizer=False, quantize=4)
    core.load(path, tokenizer=False, quantize=4, check_finite=False)


def test_a_lazy_load_quantizes_when_it_is_used() -> None:
    tokens, settings = mx.array([[1, 2, 3]]), Quantization(4, 32)
    lazy = core.load(MISTRAL, tokenizer=False, quantize=settings, lazy=True)
    now = core.load(MISTRAL, tokenizer=False, quantize=settings)
    assert mx.array_equal(lazy.model(tokens), now.model(tokens)).item()


def quantized_checkpoint(directory: Path, settings: Quantization, source: Path = MISTRAL) -> tuple[Path, Path]:
    block = {"bits": settings.bits, "group_size": settings.group_size, "mode": settings.mode}
    pair = write_pair(source, directory, lambda _: settings, block)
    return pair.quantized, pair.dequantized


def test_what_is_quantized_is_not_quantized_again(tmp_path: Path) -> None:
    path, _ = quantized_checkpoint(tmp_path, Quantization(8, 64))
    with pytest.raises(QuantizationError, match="quantized already") as caught:
        core.load(path, tokenizer=False, quantize=4)
    assert "dequantize=True" in str(caught.value)


def test_what_is_quantized_is_quantized_again_by_way_of_floats(tmp_path: Path) -> None:
    path, floats = quantized_checkpoint(tmp_path, Quantization(8, 64))
    lm = core.load(path, tokenizer=False, quantize=4, dequantize=True)
    wanted = core.load(floats, tokenizer=False, quantize=4)
    for name, array in all_arrays(wanted.model).items():
        assert mx.array_equal(all_arrays(lm.model)[name], array).item(), name


@pytest.mark.parametrize("source", [MISTRAL, TIED, MIXTRAL], ids=lambda path: path.name)
@pytest.mark.parametrize("settings", [Quantization(4, 64), Quantization(3, 32), *MODES], ids=str)
def test_a_dequantized_load_is_what_the_tensors_stand_for(source: Path, settings: Quantization, tmp_path: Path) -> None:
    path, floats = quantized_checkpoint(tmp_path, settings, source)
    lm = core.load(path, tokenizer=False, dequantize=True, dtype=mx.float32)
    wanted = core.load(floats, tokenizer=False)
    assert all(entry.quantization is None for entry in lm.report.plan.entries)
    assert lm.report.plan.parameters == wanted.report.plan.parameters
    for name, array in all_arrays(wanted.model).items():
        assert mx.array_equal(all_arrays(lm.model)[name], array).item(), name


def test_floats_have_the_dtype_of_the_scales(tmp_path: Path) -> None:
    path = as_stored(MISTRAL, tmp_path / "source", "BF16")
    quantized, _ = quantized_checkpoint(tmp_path, Quantization(4, 64), path)
    plan = core.plan(quantized, dequantize=True)
    assert {entry.storage for entry in plan.entries} == {"BF16"}
    assert plan.compute_dtype == (mx.float32 if cpu_sources() else mx.bfloat16)


def test_dequantizing_floats_is_noted() -> None:
    assert any("nothing to dequantize" in note for note in core.plan(MISTRAL, dequantize=True).notes)


@pytest.mark.parametrize("options", [{}, {"dequantize": True}])
def test_global_scales_are_refused_by_name(options: dict[str, Any], tmp_path: Path) -> None:
    """As mlx-lm writes them: one float32 beside the tensors of a matrix, or one for each expert."""
    path, _ = quantized_checkpoint(tmp_path, Quantization(4, 16, "nvfp4"))
    file = str(path / "model.safetensors")
    tensors = mx.load(file)
    assert isinstance(tensors, dict)
    mx.save_safetensors(file, tensors | {"lm_head.global_scale": mx.array(0.5)})
    with pytest.raises(QuantizationError, match=r"tensor 'lm_head\.global_scale'"):
        core.load(path, tokenizer=False, **options)


def test_a_global_scale_in_the_config_is_refused(tmp_path: Path) -> None:
    path, _ = quantized_checkpoint(tmp_path, Quantization(4, 16, "nvfp4"))
    block = {"bits": 4, "group_size": 16, "mode": "nvfp4"}
    edit_config(path, {"quantization": block | {"lm_head": block | {"global_scale": True}}})
    with pytest.raises(QuantizationError, match="global_scale"):
        core.load(path, tokenizer=False)


def test_the_users_random_state_is_left_alone(tmp_path: Path) -> None:
    path, _ = quantized_checkpoint(tmp_path, Quantization(4, 64))
    mx.random.seed(7)
    wanted = mx.random.uniform(shape=(4,)).tolist()
    mx.random.seed(7)
    core.load(MISTRAL, tokenizer=False, quantize="mixed_4_6")
    core.load(path, tokenizer=False)
    assert mx.random.uniform(shape=(4,)).tolist() == wanted
