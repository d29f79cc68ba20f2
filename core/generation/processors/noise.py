"""Random numbers that depend on a seed, a position and a token alone: on no other row, and on no earlier draw.

A seed and a position are mixed into a 64-bit key (the finaliser of SplitMix64, Steele et al., 2014), which keys MLX's
counter-based generator (Threefry, Salmon et al., 2011). MLX's global random state is left alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

_GOLDEN = 0x9E3779B97F4A7C15
_HOST = 0xD1B54A32D192ED03  # apart from the device's numbers
_MASK = (1 << 64) - 1
_ALIGNED = 32  # rows of noise begin at multiples of it: vector instructions may round otherwise than scalar ones


def gumbel(seeds: Sequence[int], positions: Sequence[int], vocab_size: int) -> mx.array:
    """Gumbel noise, float32 ``[rows, vocab_size]``, between -2.9 and 25.4.

    The largest of logits and such noise is a draw from the logits' softmax (Maddison et al., 2014).
    """
    size = -(-vocab_size // _ALIGNED) * _ALIGNED
    words = [_words(_mixed(seed, position)) for seed, position in zip(seeds, positions, strict=True)]
    if len(words) == 1:
        numbers = mx.random.uniform(0.0, -1.0, (1, size), key=mx.array(words[0], dtype=mx.uint32))
    else:
        numbers = mx.vmap(lambda key: mx.random.uniform(0.0, -1.0, (size,), key=key))(mx.array(words, dtype=mx.uint32))
    # Floats are finest near 0: that end becomes the rare, large noise. Exactly 0 would become infinity.
    negative = mx.minimum(mx.log1p(numbers), -1e-11)
    noise = -mx.log(-negative)
    return noise if size == vocab_size else noise[:, :vocab_size]


def uniform(seed: int, position: int) -> float:
    """One number from 0 to below 1, on the host."""
    return (_mixed(seed ^ _HOST, position) >> 11) / (1 << 53)


def _mixed(seed: int, position: int) -> int:
    z = (seed + (position + 1) * _GOLDEN) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def _words(key: int) -> tuple[int, int]:
    return key >> 32, key & 0xFFFFFFFF
