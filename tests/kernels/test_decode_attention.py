"""Attention of one new token of each row, whole and in parts: by the definition, in float64."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from core.kernels import inference
from core.kernels.decode_attention import _parts, _reference, _reference_in_parts, decode_attention_kernel
from core.kernels.merge_parts import merge_parts

HAS_CUDA = mx.cuda.is_available() and mx.default_device().type == mx.gpu
Inputs = tuple[mx.array, ...]


def made(rows: int, slots: int, head_dim: int, group: int, dtype: mx.Dtype) -> Inputs:
    """Two key/value heads; some rows see everything, some a window, some first tokens and a window, some one slot."""
    keys = mx.random.split(mx.random.key(rows * slots + head_dim + group), 5)
    shapes = [(rows, 2 * group, 1), (rows, 2, 1), (rows, 2, 1), (rows, 2, slots), (rows, 2, slots)]
    arrays = [mx.random.normal((*s, head_dim), key=k).astype(dtype) for s, k in zip(shapes, keys, strict=True)]
    seen = [[0, 0, slots], [0, slots // 3, slots // 2], [4, 9, slots - 1], [0, slots - 1, slots], [0, 0, 1]]
    arrays.append(mx.array([seen[row % 5] for row in range(rows)], dtype=mx.int32))
    mx.eval(arrays)
    return tuple(arrays)


def by_definition(inputs: Inputs) -> np.ndarray:
    q, new_k, new_v, keys, values = (np.array(x.astype(mx.float32), dtype=np.float64) for x in inputs[:5])
    out = np.empty_like(q)
    for row, (kept, first, last) in enumerate(inputs[5].tolist()):  # type: ignore[misc]
        keys[row, :, last - 1], values[row, :, last - 1] = new_k[row, :, 0], new_v[row, :, 0]
        slots = [s for s in range(last) if s < kept or s >= first]
        for head in range(q.shape[1]):
            kv = head * keys.shape[1] // q.shape[1]
            scores = keys[row, kv, slots] @ q[row, head, 0] * q.shape[-1] ** -0.5
            weights = np.exp(scores - scores.max())
            out[row, head, 0] = weights @ values[row, kv, slots] / weights.sum()
    return out


@pytest.mark.parametrize(("rows", "slots"), [(1, 33), (3, 700), (5, 2000), (1, 5000)])
def test_parts_are_the_whole(rows: int, slots: int) -> None:
    inputs = made(rows, slots, 64, 4, mx.float32)
    assert (_parts(rows * 2, slots) > 1) == (slots >= 512)
    expected = by_definition(inputs)
    np.testing.assert_allclose(np.array(_reference(*inputs)), expected, atol=1e-5)
    merged = merge_parts.reference(_reference_in_parts(*inputs)).astype(mx.float32)
    np.testing.assert_allclose(np.array(merged), expected, atol=1e-2)


@pytest.mark.parametrize(
    ("heads", "slots", "parts"),
    [(8, 32768, 33), (8, 512, 2), (8, 300, 1), (256, 32768, 1), (128, 1024, 2), (1, 600, 2)],
)
def test_parts_fill_a_device_and_no_more(heads: int, slots: int, parts: int) -> None:
    assert _parts(heads, slots) == parts


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_CUDA, reason="no CUDA device")
@pytest.mark.parametrize(("head_dim", "group"), [(128, 4), (128, 8), (128, 1), (64, 4), (64, 7)])
@pytest.mark.parametrize(("rows", "slots"), [(1, 33), (3, 700), (5, 2000), (1, 33000), (140, 300), (40, 1500)])
def test_the_source(rows: int, slots: int, head_dim: int, group: int) -> None:
    inputs = made(rows, slots, head_dim, group, mx.bfloat16)
    expected = by_definition(inputs)
    kernel = decode_attention_kernel(inputs[0], inputs[3], head_dim**-0.5)
    assert kernel is not None
    with inference():
        found = kernel.launched(*inputs)
    assert found is not None
    error = np.abs(np.array(found.astype(mx.float32)) - expected)
    assert error.max() < 2e-2
    # The new key and value are in their slots, and nothing else has changed.
    for held, new in ((inputs[3], inputs[1]), (inputs[4], inputs[2])):
        for row, (_, _, last) in enumerate(inputs[5].tolist()):  # type: ignore[misc]
            assert mx.array_equal(held[row, :, last - 1], new[row, :, 0])
