"""Attention of several new tokens of each row: by the definition, in float64."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from core.kernels import check_kernel, inference
from core.kernels import prefill_attention_reference as reference
from core.kernels.device import KernelDevice, current_device, use_device
from core.kernels.merge_parts import merge_parts
from core.kernels.prefill_attention import (
    _KERNELS,
    PrefillAttention,
    _parts,
    _parts_for,
    prefill_attention_kernel,
)
from core.kernels.prefill_attention_layout import LAYOUTS, Layout, layout_for, runs

HAS_CUDA = mx.cuda.is_available() and mx.default_device().type == mx.gpu
EVERYTHING = 1 << 29
Inputs = tuple[mx.array, ...]
# Rows' first slots, queries, heads, key/value heads, slots, kept, window.
CASES = [
    ([0], 5, 2, 1, 40, 0, EVERYTHING),
    ([0], 130, 4, 2, 130, 0, EVERYTHING),
    ([0, 30, 219], 33, 4, 4, 260, 0, 64),
    ([90, 0, 400], 70, 7, 1, 500, 5, 50),
    ([520, 20], 17, 8, 2, 540, 140, 90),
]
LARGE = [
    ([3000], 64, 8, 2, 3100, 0, EVERYTHING),
    ([4744], 256, 16, 4, 5000, 4, 1000),
    ([100, 0, 1500, 700, 64], 200, 12, 4, 1700, 0, EVERYTHING),
    ([0], 1100, 8, 8, 1100, 0, 300),
]


def made(case: Any, head_dim: int, dtype: mx.Dtype) -> Inputs:
    starts, seq, heads, kv_heads, slots, kept, window = case
    keys = mx.random.split(mx.random.key(slots + seq + head_dim), 3)
    queries = mx.random.normal((len(starts), seq, heads, head_dim), key=keys[0]).astype(dtype).swapaxes(1, 2)
    cache = [mx.random.normal((len(starts), kv_heads, slots, head_dim), key=key).astype(dtype) for key in keys[1:]]
    return queries, *cache, mx.array([[kept, window, start] for start in starts], dtype=mx.int32)


def by_definition(inputs: Inputs) -> np.ndarray:
    q, keys, values = (np.array(x.astype(mx.float32), dtype=np.float64) for x in inputs[:3])
    group = q.shape[1] // keys.shape[1]
    out = np.empty_like(q)
    slot, query = np.arange(keys.shape[2]), np.arange(q.shape[2])[:, None]
    for row, (kept, window, start) in enumerate(inputs[3].tolist()):  # type: ignore[misc]
        seen = (slot <= start + query) & ((slot < kept) | (slot > start + query - window))
        for head in range(q.shape[1]):
            scores = q[row, head] @ keys[row, head // group].T * q.shape[-1] ** -0.5
            scores = np.where(seen, scores, -np.inf)
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            out[row, head] = weights @ values[row, head // group] / weights.sum(axis=-1, keepdims=True)
    return out


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_references(case: Any) -> None:
    inputs = made(case, 64, mx.float32)
    expected = by_definition(inputs).swapaxes(1, 2)
    np.testing.assert_allclose(np.array(reference.whole(*inputs)), expected, atol=2e-5)
    for block, keys, parts in ((128, 64, 3), (64, 128, 2), (16, 64, 7)):
        found = reference.in_parts(*inputs, block=block, keys=keys, parts=parts)
        assert found.shape == (*expected.shape[:3], parts, 66)
        merged = merge_parts.reference(found).astype(mx.float32)
        np.testing.assert_allclose(np.array(merged), expected, atol=1e-2)


@pytest.mark.parametrize(
    ("blocks", "slots", "places", "parts"),
    [
        (8, 32000, 132, 16),
        (16, 32000, 132, 8),
        (64, 32000, 132, 2),
        (128, 32000, 132, 1),
        (512, 32000, 132, 1),
        (1, 100, 132, 1),
        (8, 300, 132, 3),
        (32, 32000, 264, 8),
    ],
)
def test_parts_fill_a_device_and_no_more(blocks: int, slots: int, places: int, parts: int) -> None:
    assert _parts(blocks, slots, places) == parts


def device(capability: int, builds: list[str]) -> KernelDevice:
    def build(**description: Any) -> Any:
        builds.append(description["name"])
        raise RuntimeError("no device")

    return KernelDevice("Fake", "cuda", build, capability)


@pytest.mark.parametrize(
    ("capability", "names"), [(7, {None}), (8, {"mma"}), (9, {"wgmma"}), (10, {"mma"}), (12, {"mma"})]
)
def test_each_device_has_a_layout_that_it_runs(capability: int, names: set[str | None]) -> None:
    found = [layout_for(capability, head_dim) for head_dim in (64, 128)]
    assert {layout and layout.name for layout in found} == names
    assert all(layout is None or runs(layout, capability) for layout in found)
    assert layout_for(capability, 80) is None


@pytest.mark.parametrize(("capability", "name"), [(7, "mma"), (8, "wgmma"), (10, "wgmma"), (0, "mma")])
def test_what_a_device_cannot_run_is_neither_built_nor_reported_as_failed(capability: int, name: str) -> None:
    builds: list[str] = []
    kernel = next(kernel for (layout, _), kernel in _KERNELS.items() if layout.name == name)
    with use_device(device(capability, builds)):
        assert check_kernel(kernel).status == "reference"
        assert not kernel.takes(*made(CASES[0], 64, mx.bfloat16))
    assert not builds


def test_which_calls_have_a_kernel() -> None:
    queries, keys, *_ = made(CASES[0], 64, mx.bfloat16)
    with use_device(None):
        assert prefill_attention_kernel(queries, keys, 64**-0.5) is None
    with use_device(device(9, [])):
        assert prefill_attention_kernel(queries, keys, 64**-0.5) is not None
        assert prefill_attention_kernel(queries, keys, 0.1) is None
        assert prefill_attention_kernel(queries[..., :32], keys[..., :32], 32**-0.5) is None
    with use_device(device(7, [])):
        assert prefill_attention_kernel(queries, keys, 64**-0.5) is None


gpu = [pytest.mark.gpu, pytest.mark.skipif(not HAS_CUDA, reason="no CUDA device")]


def of(layout: Layout, inputs: Inputs, *, in_parts: bool | None = None) -> PrefillAttention:
    """The kernel of this layout, which the device runs; in parts where they are worth it, or as told."""
    found = current_device()
    assert found is not None
    if not runs(layout, found.capability):
        pytest.skip("this device does not run this layout")
    in_parts = _parts_for(layout, *inputs[:2]) > 1 if in_parts is None else in_parts
    return PrefillAttention(_KERNELS[layout, in_parts])


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout.name} {layout.head_dim}")
class TestOnADevice:
    pytestmark = gpu

    @pytest.mark.parametrize("case", CASES + LARGE, ids=str)
    @pytest.mark.parametrize("in_parts", [False, True], ids=["whole", "parts"])
    def test_the_source(self, layout: Layout, case: Any, in_parts: bool) -> None:
        inputs = made(case, layout.head_dim, mx.bfloat16)
        kernel = of(layout, inputs, in_parts=in_parts)
        with inference():
            found = kernel.launched(*inputs)
        assert found is not None
        assert np.abs(np.array(found.astype(mx.float32)) - by_definition(inputs)).max() < 2e-2

    def test_queries_and_slots_that_lie_anywhere(self, layout: Layout) -> None:
        queries, keys, values, bounds = made(LARGE[0], layout.head_dim, mx.bfloat16)
        expected = by_definition((queries, keys, values, bounds))
        kernel = of(layout, (queries, keys, values, bounds))
        flat = mx.concatenate([mx.zeros((1,), dtype=mx.bfloat16), queries.flatten()])
        moved = flat[1:].reshape(queries.shape)  # at an address that no wide load may touch
        turned = mx.contiguous(queries.swapaxes(2, 3)).swapaxes(2, 3)
        cache = [mx.concatenate([x[:, :, :64], x, x[:, :, :64]], axis=2)[:, :, 64:-64] for x in (keys, values)]
        for asked, held in ((moved, (keys, values)), (turned, (keys, values)), (queries, cache)):
            with inference():
                found = kernel.launched(asked, *held, bounds)
            assert found is not None
            assert np.abs(np.array(found.astype(mx.float32)) - expected).max() < 2e-2

    def test_the_kernels_own_checks(self, layout: Layout) -> None:
        for in_parts in (False, True):
            kernel = of(layout, made(CASES[0], layout.head_dim, mx.bfloat16), in_parts=in_parts).kernel
            report = check_kernel(kernel)
            assert report.status == "ok", [case.problem for case in report.cases if not case.ok]
