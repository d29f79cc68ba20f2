"""Looks tokens up in an embedding, quantized or not, and multiplies by it for tied heads."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from core.kernels import products
from core.kernels.take_rows import take_rows
from core.nn.linear import linear
from core.nn.quantized import packed_product


def embed(embedding: nn.Module, tokens: mx.array, dtype: mx.Dtype | None = None) -> mx.array:
    """``embedding(tokens)``. On CUDA it uses the kernel ``take_rows``, because MLX's gather is slow to compile.

    Args:
        embedding: an embedding of ``mlx.nn``, or any module in its place.
        tokens: integers ``[batch, seq]``.
        dtype: of activations, if it may differ from the embedding's; None: the embedding's own.

    Returns:
        ``[batch, seq, hidden_size]``.
    """
    if type(embedding) is nn.Embedding:
        rows = take_rows(embedding.weight, tokens)
        return rows if dtype is None else rows.astype(dtype)
    if type(embedding) is not nn.QuantizedEmbedding:
        return embedding(tokens)
    scales, biases = take_rows(embedding.scales, tokens), embedding.get("biases")
    biases = None if biases is None else take_rows(biases, tokens)
    if dtype is not None and mx.issubdtype(scales.dtype, mx.floating):
        scales, biases = scales.astype(dtype), None if biases is None else biases.astype(dtype)
    return mx.dequantize(
        take_rows(embedding.weight, tokens),
        scales,
        biases,
        group_size=embedding.group_size,
        bits=embedding.bits,
        mode=embedding.mode,
    )


def as_linear(embedding: nn.Module, x: mx.array) -> mx.array:
    """``embedding.as_linear(x)``: ``[..., hidden_size]`` to ``[..., vocab_size]``."""
    if type(embedding) is nn.Embedding:
        return linear(x, embedding.weight)
    if type(embedding) is not nn.QuantizedEmbedding:
        return embedding.as_linear(x)
    packed = embedding.weight, embedding.scales, embedding.get("biases")
    y = products.packed_product(x, *packed)
    return packed_product(x, *packed, embedding.group_size, embedding.bits, embedding.mode) if y is None else y
