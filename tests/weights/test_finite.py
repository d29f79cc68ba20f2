"""The check of values is exact in each float type: every bit pattern is told right."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import core
from core.checkpoint import open_checkpoint
from core.errors import WeightsError
from core.weights.finite import (
    bytes_are_finite,
    count_non_finite,
    has_non_finite,
    is_float,
    is_non_finite,
    may_be_non_finite,
)
from tests.fixtures import oracle

HALVES = {mx.float16: np.isfinite(np.arange(2**16, dtype=np.uint16).view(np.float16))}
HALVES[mx.bfloat16] = np.isfinite((np.arange(2**16, dtype=np.uint32) << 16).view(np.float32))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("sign", [0, 0x8000])
def test_all_finite_halves_pass_together_and_every_other_fails_alone(dtype: mx.Dtype, sign: int) -> None:
    patterns = np.arange(2**16, dtype=np.uint16)
    finite = HALVES[dtype]
    assert not has_non_finite(mx.array(patterns[finite]).view(dtype)).item()
    mine = patterns[(patterns & 0x8000) == sign]
    bad = mine[~finite[(patterns & 0x8000) == sign]]
    smallest = np.array([bad.min(), 0, 0x8000], dtype=np.uint16)  # infinity, beside both zeros
    assert has_non_finite(mx.array(smallest).view(dtype)).item()
    rows = mx.array(np.stack([bad, np.full_like(bad, 0x8001)], axis=-1)).view(dtype)
    assert all(has_non_finite(row).item() for row in rows[:: max(1, len(bad) // 64)])


@given(st.lists(st.floats(width=32), min_size=1, max_size=8))
def test_float32_agrees_with_numpy(values: list[float]) -> None:
    array = np.array(values, dtype=np.float32)
    assert has_non_finite(mx.array(array)).item() is not bool(np.isfinite(array).all())


def test_integers_are_not_asked() -> None:
    assert not is_float(mx.uint32)
    assert is_float(mx.bfloat16)


@pytest.mark.parametrize("dtype", HALVES)
def test_the_bytes_of_halves_are_told_right_each_alone(dtype: mx.Dtype) -> None:
    patterns = np.arange(2**16, dtype=np.uint16)
    finite = HALVES[dtype]
    assert [bytes_are_finite(memoryview(patterns[i : i + 1]).cast("B"), dtype) for i in range(2**16)] == finite.tolist()
    assert bytes_are_finite(memoryview(patterns[finite]).cast("B"), dtype)


@given(st.lists(st.floats(width=32), max_size=8))
def test_the_bytes_of_float32_agree_with_numpy(values: list[float]) -> None:
    array = np.array(values, dtype=np.float32)
    assert bytes_are_finite(memoryview(array.view(np.uint8)), mx.float32) is bool(np.isfinite(array).all())


# By the OCP Microscaling specification: E8M0 has one NaN and neither sign nor infinity; E4M3 has a NaN of each sign and
# no infinity, its largest number is 448 = 0x7E.
NAN_CODES = {
    ("mxfp4", "scales"): {0xFF},
    ("mxfp8", "scales"): {0xFF},
    ("mxfp8", "weight"): {0x7F, 0xFF},
    ("nvfp4", "scales"): {0x7F, 0xFF},
}


@pytest.mark.parametrize(("mode", "role"), NAN_CODES)
def test_every_number_of_eight_bits_is_told_right_each_alone(mode: str, role: str) -> None:
    dtype = mx.uint32 if role == "weight" else mx.uint8
    assert may_be_non_finite(dtype, mode, role)
    found = set()
    for code in range(256):
        packed = mx.array([0, 1, 0x7E, 0x80, 0xFE, code, 2, 3], dtype=mx.uint8).view(dtype)
        bad, size = count_non_finite(packed, mode, role)
        assert (bad, size) == (int(code in NAN_CODES[mode, role]), 8)
        if is_non_finite(packed, mode, role).item():
            found.add(code)
    assert found == NAN_CODES[mode, role]


def test_packed_integers_are_not_asked() -> None:
    assert not may_be_non_finite(mx.uint32, "affine")
    assert not may_be_non_finite(mx.uint32, "mxfp4")  # E2M1 has neither NaN nor infinity
    assert not may_be_non_finite(mx.uint8)
    assert may_be_non_finite(mx.float16, "affine", "scales")


TREATMENTS: list[dict[str, Any]] = [{}, {"dequantize": True}, {"dequantize": True, "quantize": 4}]


@pytest.mark.parametrize(
    ("source", "mode", "role"), [*(("mistral_swa8", *one) for one in NAN_CODES), ("mixtral_swa8", "nvfp4", "scales")]
)
def test_nan_in_a_quantized_matrix_names_its_tensor(source: str, mode: str, role: str, tmp_path: Path) -> None:
    core.convert(oracle(source), tmp_path / "model", quantize=mode)
    tensors = core.plan(tmp_path / "model").entries
    name = next(n for entry in tensors for n in entry.tensors if n.endswith((f"w2.{role}", f"k_proj.{role}")))
    info = open_checkpoint(tmp_path / "model").tensors[name]
    for code in sorted(NAN_CODES[mode, role]):
        with (tmp_path / "model" / info.shard).open("r+b") as file:
            file.seek(info.start + 5)
            file.write(bytes([code]))
        for treatment in TREATMENTS:
            with pytest.raises(WeightsError, match=f"tensor '{re.escape(name)}' holds NaN or infinity in 1 of"):
                core.load(tmp_path / "model", tokenizer=False, **treatment)
            with pytest.raises(WeightsError, match=f"tensor '{re.escape(name)}' holds NaN or infinity in 1 of"):
                core.convert(tmp_path / "model", tmp_path / "out", **treatment)
    core.load(tmp_path / "model", tokenizer=False, check_finite=False)
    core.convert(tmp_path / "model", tmp_path / "out", check_finite=False)
