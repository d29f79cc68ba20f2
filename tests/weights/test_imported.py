"""GPTQ and AWQ checkpoints load to the integers that they hold, and to exactly the weights that they stand for.

The reference packs known integers by loops of its own, and dequantizes them in float64 (``tests/fixtures/foreign.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import core
from core.errors import QuantizationError, WeightsError
from core.nn import QuantizedExpertLinear, QuantizedLinear
from core.weights.tree import all_arrays, find
from tests.fixtures import oracle, reference
from tests.fixtures.foreign import Foreign, Matrix, awq, gptq, write_foreign
from tests.fixtures.variants import Tensor, Tensors, edit_config, variant

MISTRAL, MIXTRAL = oracle("mistral_swa8"), oracle("mixtral_8e_top3")
DOWN = "model.layers.1.mlp.down_proj"


@dataclass(frozen=True)
class Case:
    pack: Callable[[Matrix], dict[str, Tensor]]
    block: dict[str, Any]
    bits: int = 4
    group: int = 32
    source: Path = MISTRAL

    def write(self, directory: Path) -> Foreign:
        block = {"bits": self.bits, "group_size": self.group} | self.block
        return write_foreign(self.source, directory, self.pack, block, bits=self.bits, group=self.group)


GPTQ = {"quant_method": "gptq", "desc_act": False, "sym": False}
V2 = GPTQ | {"checkpoint_format": "gptq_v2"}
AWQ = {"quant_method": "awq", "zero_point": True, "version": "gemm"}
CASES = {
    "gptq": Case(partial(gptq, bits=4), GPTQ),
    "gptq, groups of 64": Case(partial(gptq, bits=4), GPTQ | {"checkpoint_format": "gptq"}, group=64),
    "gptq, 8 bits": Case(partial(gptq, bits=8), GPTQ, bits=8),
    "gptq, 2 bits": Case(partial(gptq, bits=2), GPTQ, bits=2),
    "gptq v2": Case(partial(gptq, bits=4, offset=0), V2),
    "gptq, static groups": Case(partial(gptq, bits=4), GPTQ | {"desc_act": True, "static_groups": True}),
    "gptq, experts": Case(partial(gptq, bits=4), GPTQ, source=MIXTRAL),
    "awq": Case(awq, AWQ),
    "awq, groups of 64": Case(awq, {"quant_method": "awq"}, group=64),
    "awq, experts": Case(awq, AWQ, source=MIXTRAL),
}


def dequantized(model: Any, path: str) -> np.ndarray:
    """A loaded matrix, unpacked in NumPy and computed in float64."""
    module = find(model, path)
    packed, bits = np.array(module.weight), module.bits
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    integers = ((packed[..., None] >> shifts) & np.uint32(2**bits - 1)).reshape(*packed.shape[:-1], -1)
    scales, biases = (
        np.array(part).astype(np.float64).repeat(module.group_size, -1) for part in (module.scales, module.biases)
    )
    wide: np.ndarray = integers * scales + biases
    return wide


@pytest.mark.parametrize("name", CASES)
def test_weights_are_exactly_those_that_the_file_stands_for(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    found = case.write(tmp_path)
    lm = core.load(found.path, tokenizer=False)
    for layer in range(2):
        theirs, ours = f"model.layers.{layer}", f"layers.{layer}"
        parts = [found.matrices[f"{theirs}.self_attn.{part}_proj"].floats for part in "qkv"]
        assert np.array_equal(dequantized(lm.model, f"{ours}.self_attn.qkv_proj.linears.0"), np.concatenate(parts))
        if case.source == MISTRAL:
            down = found.matrices[f"{theirs}.mlp.down_proj"].floats
            assert np.array_equal(dequantized(lm.model, f"{ours}.mlp.down_proj"), down)
        else:
            experts = f"{theirs}.block_sparse_moe.experts"
            stack = np.stack([found.matrices[f"{experts}.{i}.w2"].floats for i in range(8)])
            assert np.array_equal(dequantized(lm.model, f"{ours}.block_sparse_moe.experts.down_proj"), stack)


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_the_weights_in_full(name: str, tmp_path: Path) -> None:
    """On logits of a scale of 6; only the order of summation differs."""
    found = CASES[name].write(tmp_path)
    tokens = mx.array(reference(MISTRAL)["input_ids"])[None]
    packed, floats = (core.load(path, tokenizer=False).model(tokens) for path in (found.path, found.floats))
    np.testing.assert_allclose(np.array(packed), np.array(floats), atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_dequantizing_gives_the_same_weights(name: str, tmp_path: Path) -> None:
    """In float16, the scales' dtype: each weight is the float16 number nearest to what the file stands for."""
    found = CASES[name].write(tmp_path)
    lm = core.load(found.path, tokenizer=False, dequantize=True, dtype=mx.float32)
    wanted = all_arrays(core.load(found.floats, tokenizer=False).model)
    for path, array in all_arrays(lm.model).items():
        exact = wanted[path]
        if not any(part in path for part in ("norm", "embed", "lm_head", "moe.gate")):
            exact = exact.astype(mx.float16).astype(mx.float32)
        assert mx.array_equal(array, exact).item(), path


def test_the_plan_says_what_exactness_costs(tmp_path: Path) -> None:
    found = CASES["gptq"].write(tmp_path)
    plan = core.plan(found.path)
    assert plan.ok
    pairs = sum(matrix.scales.size for matrix in found.matrices.values())
    assert any(f"takes {4 * pairs:,} bytes more than float16" in note for note in plan.notes)
    lm = core.load(found.path, tokenizer=False)
    assert plan.bytes == sum(array.nbytes for array in all_arrays(lm.model).values())
    assert plan.parameters == core.plan(MISTRAL).parameters
    assert lm.report.weight_error is None


@pytest.mark.parametrize("name", ["gptq", "awq", "gptq, experts"])
def test_approximate_stores_float16_and_reports_the_largest_error(name: str, tmp_path: Path) -> None:
    found = CASES[name].write(tmp_path)
    lm = core.load(found.path, tokenizer=False, approximate=True)
    error = 0.0
    for matrix in found.matrices.values():
        exact = matrix.scales.astype(np.float64) * matrix.zeros
        error = max(error, np.abs(exact.astype(np.float16).astype(np.float64) - exact).max())
    assert error > 0
    assert lm.report.weight_error == pytest.approx(error, rel=1e-6)
    assert f"{error:.3g}" in str(lm.report)
    module = find(lm.model, "layers.0.self_attn.o_proj")
    assert (module.scales.dtype, module.biases.dtype) == (mx.float16, mx.float16)
    off = dequantized(lm.model, "layers.0.self_attn.o_proj") - found.matrices["model.layers.0.self_attn.o_proj"].floats
    assert np.abs(off).max() <= error
    assert lm.report.plan.bytes < core.plan(found.path).bytes


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_activations_keep_their_dtype(dtype: mx.Dtype, tmp_path: Path) -> None:
    """Scales in float32 make the product a float32 one, which is cast back."""
    x = mx.ones((1, 3, 64), dtype)
    dense = core.load(CASES["gptq"].write(tmp_path / "dense").path, tokenizer=False, dtype=dtype).model
    module = dense.layers[0].self_attn.o_proj
    assert isinstance(module, QuantizedLinear)
    assert module.scales.dtype == mx.float32
    assert module(x).dtype == dtype
    assert dense(mx.array([[1, 2]])).dtype == dtype
    experts = core.load(CASES["gptq, experts"].write(tmp_path / "experts").path, tokenizer=False, dtype=dtype).model
    down = find(experts, "layers.0.block_sparse_moe.experts.gate_up_proj.linears.0")
    assert isinstance(down, QuantizedExpertLinear)
    assert down(x[:, :, None], mx.zeros((1, 3), mx.uint32)).dtype == dtype


def test_a_lazy_load_is_the_same(tmp_path: Path) -> None:
    found = CASES["awq"].write(tmp_path)
    tokens = mx.array([[1, 2, 3]])
    lazy, now = (core.load(found.path, tokenizer=False, lazy=lazy).model(tokens) for lazy in (True, False))
    assert mx.array_equal(lazy, now).item()


def test_quantizing_again_goes_by_way_of_floats(tmp_path: Path) -> None:
    found = CASES["gptq"].write(tmp_path)
    with pytest.raises(QuantizationError, match="quantized already"):
        core.load(found.path, tokenizer=False, quantize=8)
    lm = core.load(found.path, tokenizer=False, quantize=8, dequantize=True)
    assert find(lm.model, "layers.0.self_attn.o_proj").bits == 8


REFUSED = {
    "bits": ("gptq", {"bits": 3}, "2, 4 or 8"),
    "whole rows": ("gptq", {"group_size": -1}, "whole rows"),
    "activation order": ("gptq", {"desc_act": True}, "consecutive features"),
    "another packing": ("gptq", {"checkpoint_format": "marlin"}, "marlin"),
    "an older flag of another packing": ("gptq", {"is_marlin_format": True}, "is_marlin_format"),
    "layers of their own": ("gptq", {"dynamic": {"lm_head": {"bits": 8}}}, "dynamic"),
    "groups that MLX does not have": ("gptq", {"group_size": 1024}, "does not have"),
    "awq, another version": ("awq", {"version": "gemv"}, "gemm"),
    "awq without zero points": ("awq", {"zero_point": False}, "zero_point"),
    "awq, bits": ("awq", {"bits": 3}, "bits"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_imported_is_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    case, changes, reason = REFUSED[name]
    made = replace(CASES[case], block=CASES[case].block | changes).write(tmp_path)
    edit_config(made.path, {"quantization_config": {"bits": 4, "group_size": 32} | CASES[case].block | changes})
    with pytest.raises(QuantizationError, match=reason) as caught:
        core.plan(made.path)
    assert "config.json" in str(caught.value)


def changed(path: Path, directory: Path, name: str, edit: Callable[[np.ndarray], None], dtype: str = "I32") -> Path:
    """A copy with one tensor changed."""

    def change(tensors: Tensors) -> Tensors:
        old = tensors[name]
        array = np.frombuffer(old.data, {"I32": np.int32, "F16": np.float16}[dtype]).reshape(old.shape).copy()
        edit(array)
        return tensors | {name: Tensor.of(array, dtype)}

    return variant(path, directory, tensors=change)


def test_groups_out_of_order_are_refused_whatever_the_config_says(tmp_path: Path) -> None:
    def shuffle(g_idx: np.ndarray) -> None:
        g_idx[[0, -1]] = g_idx[[-1, 0]]

    path = changed(CASES["gptq"].write(tmp_path / "made").path, tmp_path / "shuffled", f"{DOWN}.g_idx", shuffle)
    with pytest.raises(QuantizationError, match=rf"{DOWN}\.g_idx' puts input features into groups out of order") as e:
        core.load(path, tokenizer=False)
    assert "model.safetensors" in str(e.value)


def test_a_zero_point_that_has_overflowed_is_refused(tmp_path: Path) -> None:
    """Version 1 stores 0 less one as 15, which readers take for 16 or for 0."""

    def overflow(qzeros: np.ndarray) -> None:
        qzeros[0, 0] |= 15

    path = changed(CASES["gptq"].write(tmp_path / "made").path, tmp_path / "odd", f"{DOWN}.qzeros", overflow)
    with pytest.raises(QuantizationError, match=rf"{DOWN}\.qzeros' holds a zero point of 16"):
        core.load(path, tokenizer=False)
    edit_config(path, {"quantization_config": {"bits": 4, "group_size": 32} | V2})
    core.load(path, tokenizer=False)  # there, 15 is 15


def test_scales_that_are_not_finite_are_found(tmp_path: Path) -> None:
    def damage(scales: np.ndarray) -> None:
        scales[0, 3] = np.nan

    path = changed(CASES["awq"].write(tmp_path / "made").path, tmp_path / "nan", f"{DOWN}.scales", damage, "F16")
    with pytest.raises(WeightsError, match=rf"{DOWN}\.scales' holds NaN"):
        core.load(path, tokenizer=False)


def test_tensors_of_the_wrong_shape_are_in_the_plan(tmp_path: Path) -> None:
    found = CASES["gptq"].write(tmp_path)
    edit_config(found.path, {"quantization_config": {"bits": 4, "group_size": 64} | GPTQ})
    plan = core.plan(found.path)
    assert not plan.ok
    assert any(m.tensor == f"{DOWN}.scales" for m in plan.mismatched)
