"""The check of values is exact in each float type: every bit pattern is told right."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.weights.finite import bytes_are_finite, has_non_finite, is_float

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
