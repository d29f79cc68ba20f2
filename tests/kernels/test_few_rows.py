"""How products of few rows are cut into parts; the arithmetic is tested where there is a device."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from core.kernels import check_kernel
from core.kernels.few_rows import _KERNELS, InParts, _Shape, _shape
from core.kernels.sum_parts import sum_parts


@pytest.mark.parametrize(
    ("rows", "features", "batch_tiles", "row_tiles", "parts"),
    [
        (28672, 4096, 4, 2, 1),  # gate and up of 7B: 112 blocks
        (4096, 14336, 4, 1, 8),  # down
        (4096, 4096, 4, 1, 4),
        (6144, 4096, 4, 1, 4),
        (4096, 14336, 8, 2, 8),
        (4096, 4096, 8, 2, 4),
        (32000, 4096, 1, 2, 1),
        (384, 4096, 8, 1, 4),  # rows that fill no block of two tiles
        (4096, 512, 1, 2, 1),
    ],
)
def test_the_blocks_fill_a_device(rows: int, features: int, batch_tiles: int, row_tiles: int, parts: int) -> None:
    shape = _shape(4, batch_tiles, rows, features)
    assert (shape.row_tiles, shape.parts(rows, features) if shape.in_parts else 1) == (row_tiles, parts)
    assert rows % shape.block_rows == 0
    assert shape in _KERNELS


@pytest.mark.parametrize("features", [4096, 4224, 9 * 1024])
@pytest.mark.parametrize("bits", [4, 8])
def test_parts_add_up_to_the_product(bits: int, features: int) -> None:
    weight = mx.random.normal((256, features), key=mx.random.key(features))
    packed = mx.quantize(weight, 64, bits)
    x = mx.random.normal((3, 1, features), key=mx.random.key(1))
    kernel = _KERNELS[_shape(bits, 1, 256, features)]
    assert isinstance(kernel, InParts)
    found = kernel.kernel.reference(x, *packed)
    assert found.shape[0] >= 4
    assert found.shape[1:] == (3, 1, 256)
    expected = np.array(x) @ np.array(mx.dequantize(*packed, 64, bits)).T
    np.testing.assert_allclose(np.array(mx.sum(found, axis=0)), expected, atol=1.5, rtol=2e-2)  # weights are bfloat16
    assert mx.array_equal(sum_parts(found), mx.sum(found, axis=0).astype(mx.bfloat16))


@pytest.mark.parametrize(
    "shape", [shape for shape in _KERNELS if shape.batch_tiles in (1, 8)], ids=lambda shape: shape.name
)
def test_references_agree_in_every_dtype(shape: _Shape) -> None:
    kernel = _KERNELS[shape]
    report = check_kernel(kernel.kernel if isinstance(kernel, InParts) else kernel)  # type: ignore[arg-type]
    assert report.status in ("ok", "reference"), [case for case in report.cases if not case.ok]
