"""Random weights that make mistakes show.

A new model hides them: its norms are ones, its biases zeros, its attention nearly uniform, so a norm that is left out
or a bias that is lost changes nothing. Parameters are recognised by their shapes and the last part of their names.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from core.weights.tree import all_arrays, replace

_GAIN = 1.6  # of a projection: attention and routers become selective, and the residual stream stays bounded
_EMBEDDING = 0.1  # small, so that the first norm's epsilon has an effect


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Replaces every floating parameter by float32 numbers that depend only on its path and ``seed``.

    Norm weights lie around 1, biases around 0, rows of matrices keep the size of their input, and embeddings are small.
    """
    arrays = all_arrays(model)
    keys = mx.random.split(mx.random.key(seed), max(2, len(arrays)))
    for (path, array), key in zip(arrays.items(), keys, strict=False):
        if mx.issubdtype(array.dtype, mx.floating):
            replace(model, path, _random(path, array.shape, key))
    mx.eval(model)


def _random(path: str, shape: tuple[int, ...], key: mx.array) -> mx.array:
    noise = mx.random.normal(shape, key=key)
    if path.endswith("bias"):
        return 0.3 * noise
    if len(shape) < 2:
        return 1 + 0.25 * noise
    if path.endswith("embed_tokens.weight"):
        return _EMBEDDING * noise
    weight: mx.array = _GAIN * shape[-1] ** -0.5 * noise
    return weight
