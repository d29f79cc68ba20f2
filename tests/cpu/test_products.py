"""Products of the CPU library against float64, at every level that this processor runs."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import mlx.core as mx
import numpy as np
import pytest

from core.cpu import library, processor, structures
from core.cpu.levels import levels_of
from core.cpu.products import expert_products, product
from core.cpu.structures import EXACT
from core.kernels.weights import AFFINE, DENSE, MXFP4_FORMAT, Format
from tests.cpu.float64 import DTYPES, assert_product, floats_of, precision_of, wide

LEVELS = [level.name for level in levels_of(processor.machine()) if level.features <= processor.features()]
ROWS = (1, 2, 3, 4, 5, 8, 13, 33, 70)

pytestmark = pytest.mark.skipif(mx.default_device().type != mx.DeviceType.cpu, reason="the CPU library is for the CPU")


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Products are computed by this level's library."""
    if not (library.FOLDER / f"libcorelm-{request.param}.so").is_file():
        pytest.skip("the compiler does not know this level")
    monkeypatch.setenv("CORE_CPU", request.param)
    return str(request.param)


def kinds(matrices: tuple[int, ...] = ()) -> Iterator[tuple[Format, int, tuple[mx.array, ...]]]:
    for kind in (DENSE, AFFINE, MXFP4_FORMAT):
        for columns, weights in kind.samples(mx.random.key(3), matrices):
            yield kind, columns, weights


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_type_of_weights(dtype: mx.Dtype) -> None:
    for kind, columns, weights in kinds():
        floats = floats_of(kind, columns, weights)
        precision = precision_of(mx.zeros(1, dtype), *weights)
        xs = mx.random.normal((max(ROWS), columns), key=mx.random.key(5)).astype(dtype)
        mx.eval(xs, *weights)
        for rows in ROWS:
            x = xs[:rows]
            assert_product(product(x, kind.matrix(x, *weights), precision, dtype), x, floats, precision)


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 7), (3, 33), (31, 129), (65, 257), (96, 512)])
def test_odd_sizes(dtype: mx.Dtype, rows: int, columns: int) -> None:
    for weight_dtype in DTYPES:
        weight = mx.random.normal((rows, columns)).astype(weight_dtype)
        precision = precision_of(mx.zeros(1, dtype), weight)
        for count in (1, 3, 6, 17):
            x = mx.random.normal((count, columns)).astype(dtype)
            mx.eval(x, weight)
            assert_product(product(x, DENSE.matrix(x, weight), precision, mx.float32), x, wide(weight), precision)


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("shape", ["broadcast", "in order", "rows", "scalar lead"])
def test_experts_of_every_type(shape: str) -> None:
    lead, chosen = {
        "broadcast": ((3, 1, 1), mx.array([[0, 2], [2, 2], [1, 0]], dtype=mx.uint32)),
        "in order": ((12, 1), mx.array([0] * 9 + [2] * 3, dtype=mx.uint32)),
        "rows": ((2, 3), mx.array([2, 2], dtype=mx.uint32)),
        "scalar lead": ((2,), mx.array([1, 0, 1], dtype=mx.uint32)),
    }[shape]
    for kind, columns, weights in kinds((3,)):
        x = mx.random.normal((*lead, columns))
        mx.eval(x, *weights)
        precision = precision_of(x, *weights)
        y = expert_products(x, chosen, kind.matrix(x, *weights), 3, precision)
        assert_product(y, x, floats_of(kind, columns, weights)[np.array(chosen)], precision)


@pytest.mark.usefixtures("best")
def test_an_expert_that_is_not_there_is_left_to_mlx() -> None:
    x, weight = mx.ones((1, 1, 8)), mx.ones((2, 4, 8))
    mx.eval(x, weight)
    assert expert_products(x, mx.array([2], dtype=mx.uint32), DENSE.matrix(x, weight), 2, EXACT) is None


def test_structures_are_as_large_as_the_librarys() -> None:
    found = library.load_library()
    if found is None:
        pytest.skip("there is no CPU library here")
    assert [found.corelm_size(i) for i in range(len(structures.ALL))] == [ctypes.sizeof(s) for s in structures.ALL]
