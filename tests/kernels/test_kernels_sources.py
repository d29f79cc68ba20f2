"""The Metal and CUDA bodies, compiled as C++ and run on the CPU against their references."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from kernel_shim import DTYPES, SHIM, ShimLibrary, find_compiler, mlx_cuda_source, to_float64

from core.kernels import swiglu, swiglu_pair
from core.kernels.compare import compare

KERNELS = (swiglu, swiglu_pair)
# Units in the last place relative to the number, the smallest normal number, and its largest finite one.
ULP = {mx.float32: 2.0**-23, mx.float16: 2.0**-10, mx.bfloat16: 2.0**-7}
EXTREMES = (
    0.0,
    -0.0,
    1e-8,
    -6e-8,
    1e-40,
    -1e-40,
    0.5,
    -1.0,
    17.0,
    -17.0,
    87.0,
    88.0,
    -88.0,
    88.8,
    -88.8,
    104.0,
    -104.0,
)
EXTREMES += (240.0, -1e4, 1e4, 65504.0, -65504.0, float("inf"), float("-inf"), float("nan"))


@pytest.fixture(scope="module", params=["metal", "cuda"])
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ShimLibrary:
    compiler = find_compiler()
    if compiler is None:
        reason = "no C++ compiler (c++, g++, clang++): the Metal and CUDA bodies were not run"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return ShimLibrary(KERNELS, request.param, compiler, tmp_path_factory.mktemp(f"shim_{request.param}"))


def pairs(values: mx.array) -> tuple[mx.array, mx.array]:
    """Every value against every value."""
    n = values.size
    return mx.broadcast_to(values[:, None], (n, n)) + 0, mx.broadcast_to(values[None, :], (n, n)) + 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
def test_agrees_with_reference_on_samples(library: ShimLibrary, kernel, dtype) -> None:
    widths = set()
    for sample in kernel.sample_inputs(mx.random.key(11), dtype):
        widths.add(dict(kernel.launch(*sample).template)["WIDTH"])
        result = compare(library.run(kernel, *sample), kernel.reference(*sample), kernel.tolerance_of(dtype))
        assert result.ok, (result, [x.shape for x in sample])
    assert widths == {1, 16 // dtype.size}, "the samples exercise the vector and the scalar path"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_agrees_with_reference_on_extremes(library: ShimLibrary, dtype) -> None:
    gate, up = pairs(mx.array(EXTREMES).astype(dtype))
    # Where the sigmoid is a denormal number some devices flush it, and an infinite ``up`` makes that NaN or infinity.
    up = mx.where((gate < -87) & mx.isinf(up), mx.array(1.0, dtype=dtype), up)
    expected, tolerance = swiglu_pair.reference(gate, up), swiglu.tolerance_of(dtype)
    assert mx.isinf(expected).any().item()
    assert mx.isnan(expected).any().item()
    assert compare(library.run(swiglu_pair, gate, up), expected, tolerance).ok
    assert compare(library.run(swiglu, mx.concatenate([gate, up], axis=-1)), expected, tolerance).ok


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
@pytest.mark.parametrize("up", [1.0, -3.25, 700.0, 1e-3])
def test_every_half_as_gate(library: ShimLibrary, dtype, up: float) -> None:
    gate = mx.arange(65536).astype(mx.uint16).view(dtype).reshape(4, -1)
    ups = mx.full(gate.shape, up, dtype=dtype)
    actual = to_float64(library.run(swiglu_pair, gate, ups))
    g, u = to_float64(gate), to_float64(ups)
    with np.errstate(over="ignore", invalid="ignore"):
        truth = g / (1 + np.exp(-g)) * u
    assert (np.isnan(actual) == (np.isnan(truth) | np.isneginf(g))).all()
    largest = 65520.0 if dtype == mx.float16 else 3.3961775e38  # from here on the nearest number is infinity
    finite = np.isfinite(truth) & (np.abs(truth) < largest * (1 - 1e-6))
    smallest = 2.0**-24 if dtype == mx.float16 else 1e-37
    limit = ULP[dtype] * 0.5001 * np.abs(truth[finite]) + smallest * 0.51 + 1e-37 * abs(up)
    assert (np.abs(actual[finite] - truth[finite]) <= limit).all()
    overflowing = np.abs(truth) > largest * (1 + 1e-6)
    assert np.isinf(actual[overflowing]).all()


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_inputs_may_start_anywhere(library: ShimLibrary, kernel, dtype) -> None:
    for sample in kernel.sample_inputs(mx.random.key(5), dtype)[:2]:
        assert dict(kernel.launch(*sample).template)["WIDTH"] > 1
        for misalign in (1, 3):
            actual = library.run(kernel, *sample, misalign=misalign)
            assert mx.array_equal(actual, library.run(kernel, *sample)).item()


def test_shim_converts_as_mlx_does(library: ShimLibrary) -> None:
    """The shim's own rounding is right: silu(g) * u at g = 100 is 100 u, rounded once."""
    for dtype in (mx.float16, mx.bfloat16):
        up = (mx.random.normal((4096,), key=mx.random.key(2)) * mx.exp(mx.linspace(-22, 6, 4096))).astype(dtype)
        gate = mx.full(up.shape, 100.0, dtype=dtype)
        expected = (up.astype(mx.float32) * 100).astype(dtype)
        assert mx.array_equal(library.run(swiglu_pair, gate, up), expected).item()


def test_cuda_kernels_compile_as_mlx_assembles_them(tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc: the CUDA kernels were not compiled as such")
    # MLX's own headers come first; the shim only has what its CPU build leaves out.
    include = [f"-I{Path(mx.__file__).parent / 'include'}", f"-I{SHIM}"]
    source = tmp_path / "kernels.cu"
    source.write_text(mlx_cuda_source(KERNELS))
    ptx = tmp_path / "kernels.ptx"
    command = [nvcc, "-ptx", "-arch=sm_90", "-std=c++17", *include, str(source), "-o", str(ptx)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert ptx.read_text().count(".visible .entry") == 12, "two kernels, three dtypes, vector and scalar"
