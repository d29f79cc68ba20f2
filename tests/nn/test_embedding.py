"""Looking tokens up gives what ``mlx.nn``'s modules give, whatever they hold; so do the definitions that checks use."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import pytest

from core.kernels import Kernel, registered_kernels
from core.kernels.compare import compare
from core.kernels.device import cpu_sources
from core.nn.embedding import as_linear, embed

TOKENS = (mx.array([[3, 0, 39], [7, 7, 1]]), mx.array([[5]], mx.uint32), mx.array([[2, 4]], mx.int64))


@pytest.mark.parametrize("tokens", TOKENS, ids=lambda tokens: str(tokens.dtype))
@pytest.mark.parametrize("mode", [None, "affine", "mxfp4", "mxfp8", "nvfp4"])
def test_an_embedding_is_mlxs(mode: str | None, tokens: mx.array) -> None:
    embedding: nn.Module = nn.Embedding(40, 64)
    if mode is not None:
        embedding = nn.QuantizedEmbedding.from_embedding(embedding, mode=mode)
    assert mx.array_equal(embed(embedding, tokens), embedding(tokens)).item()


@pytest.mark.parametrize("mode", [None, "affine", "mxfp4"])
@pytest.mark.parametrize("columns", [64, 256])
def test_a_tied_head_multiplies_by_the_embedding(mode: str | None, columns: int) -> None:
    """Also where a row is one group, for which MLX's CUDA backend has a kernel that gives wrong numbers."""
    embedding: nn.Module = nn.Embedding(160, columns)
    weight = embedding.weight
    if mode is not None:
        embedding = nn.QuantizedEmbedding.from_embedding(embedding, mode=mode)
        packed = embedding.weight, embedding.scales, embedding.get("biases")
        weight = mx.dequantize(*packed, embedding.group_size, embedding.bits, mode, dtype=mx.float32)
    x = mx.random.normal((2, 3, columns))
    assert mx.allclose(as_linear(embedding, x), x @ weight.T, atol=1e-4).item()


def test_another_module_in_its_place_is_called() -> None:
    class Doubled(nn.Embedding):
        def __call__(self, x: mx.array) -> mx.array:
            return 2 * super().__call__(x)

    embedding = Doubled(40, 64)
    assert mx.array_equal(embed(embedding, TOKENS[0]), 2 * embedding.weight[TOKENS[0]]).item()


@pytest.mark.parametrize(
    "kernel",
    [
        kernel
        for kernel in registered_kernels().values()
        if kernel.definition is not kernel.reference and (cpu_sources() or kernel.cuda or kernel.metal)
    ],
    ids=lambda kernel: kernel.name,
)
def test_a_definition_is_the_reference(kernel: Kernel) -> None:
    for dtype in (mx.float32, mx.bfloat16):
        for sample in kernel.sample_inputs(mx.random.key(3), dtype):
            if kernel.supports(*sample):
                expected = kernel.reference(*sample)
                assert compare(kernel.definition(*sample), expected, kernel.tolerance_of(expected.dtype)).ok
