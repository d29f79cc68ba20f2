"""Rotary position embedding (Su et al., 2021, RoFormer) and the frequency scalings that published configs use.

The arithmetic follows ``transformers/modeling_rope_utils.py``, computed in float64 on the host and stored in float32.
"""

from __future__ import annotations

import math
from typing import TypeVar

import mlx.core as mx
import mlx.nn as nn

from core.config.rope import RopeParameters
from core.device import backend

_T = TypeVar("_T")


class RoPE:
    """Rotates the first ``dims`` features of each head by an angle that grows with the position.

    Args:
        head_dim: features of one head; ``rope_parameters.partial_rotary_factor`` says how many of them rotate.
        parameters: type and settings of the embedding.
        max_position_embeddings: context length in tokens; only ``dynamic`` scaling reads it.
        traditional: rotate neighbouring features (2i, 2i + 1), as Mistral's own checkpoints lay them out, instead of
            the halves (i, i + dims / 2), as Hugging Face checkpoints do.
    """

    def __init__(
        self, head_dim: int, parameters: RopeParameters, max_position_embeddings: int, *, traditional: bool = False
    ) -> None:
        self.dims = int(head_dim * parameters.partial_rotary_factor)
        self.parameters = parameters
        self.traditional = traditional
        self.base: float | None = None
        self.scale = 1.0
        self.attention_factor = 1.0
        self._wavelengths: mx.array | None = None
        self._long_wavelengths: mx.array | None = None
        self._length = max_position_embeddings
        match parameters.rope_type:
            case "default":
                self.base = parameters.rope_theta
            case "linear":
                self.base = parameters.rope_theta
                self.scale = 1 / _known(parameters.factor)
            case "dynamic":
                pass  # the base depends on the sequence's length: computed at each step
            case "llama3":
                self._wavelengths = _as_array(_llama3(parameters, self.dims))
            case "yarn":
                wavelengths, self.attention_factor = _yarn(parameters, self.dims)
                self._wavelengths = _as_array(wavelengths)
            case "longrope":
                short, long, self.attention_factor = _longrope(parameters, self.dims, max_position_embeddings)
                self._wavelengths, self._long_wavelengths = _as_array(short), _as_array(long)
                self._length = _known(parameters.original_max_position_embeddings)

    @property
    def limit(self) -> int | None:
        """The sequence length up to which the frequencies do not depend on the length; None: they never do."""
        return self._length if self.parameters.rope_type in ("dynamic", "longrope") else None

    def __call__(self, x: mx.array, positions: mx.array) -> mx.array:
        """Rotates ``x``.

        Args:
            x: ``[batch, heads, seq, head_dim]``.
            positions: int32 ``[batch]``, the position of each row's first token.

        Returns:
            An array of ``x``'s shape and dtype.
        """
        if self.attention_factor != 1.0:
            rotated = x[..., : self.dims] * self.attention_factor
            x = rotated if self.dims == x.shape[-1] else mx.concatenate([rotated, x[..., self.dims :]], axis=-1)
        wavelengths = None if self.base is not None else self._frequencies(positions, x.shape[-2])
        rows = _rows_at_once(x, self.dims)
        if x.shape[0] <= rows:
            return self._rotate(x, positions, wavelengths)
        parts = range(0, x.shape[0], rows)
        return mx.concatenate([self._rotate(x[i : i + rows], positions[i : i + rows], wavelengths) for i in parts])

    def frequencies(self, length: int) -> list[float]:
        """Radians a position for each feature pair, in a step after which the longest sequence has ``length``
        tokens."""
        if self.base is not None:
            return [self.scale * self.base ** (-i / self.dims) for i in range(0, self.dims, 2)]
        wavelengths: list[float] = self._frequencies(mx.array([length], dtype=mx.int32), 0).tolist()  # type: ignore[assignment]
        return [1 / wavelength for wavelength in wavelengths]

    def _rotate(self, x: mx.array, positions: mx.array, wavelengths: mx.array | None) -> mx.array:
        return mx.fast.rope(
            x,
            self.dims,
            traditional=self.traditional,
            base=self.base,
            scale=self.scale,
            offset=positions,
            freqs=wavelengths,
        )

    def _frequencies(self, positions: mx.array, seq: int) -> mx.array:
        """Wavelength / 2π of each feature pair, float32 ``[dims / 2]``.

        ``dynamic`` and ``longrope`` choose by the longest sequence of the step, as transformers does, so keys that were
        cached earlier keep their earlier frequencies.
        """
        if self.parameters.rope_type == "dynamic":
            factor, original = _known(self.parameters.factor), self._length
            length = mx.maximum(mx.max(positions) + seq, original).astype(mx.float32)
            stretch = (1 + factor * (length - original) / original) ** (self.dims / (self.dims - 2))
            return (self.parameters.rope_theta * stretch) ** (mx.arange(0, self.dims, 2, dtype=mx.float32) / self.dims)
        assert self._wavelengths is not None
        if self._long_wavelengths is None:
            return self._wavelengths
        return mx.where(mx.max(positions) + seq > self._length, self._long_wavelengths, self._wavelengths)


def _rows_at_once(x: mx.array, dims: int) -> int:
    """Number of rows that ``mx.fast.rope`` can rotate in one call.

    MLX 0.32 on CUDA makes blocks of up to 1,024 threads from feature pairs, tokens and quarters of the heads of all
    rows. With few pairs and tokens, the last of these gets more than 64, which CUDA refuses.
    """
    batch, heads, seq, _ = x.shape
    if (dims // 2).bit_length() + seq.bit_length() >= 6 or backend() != "cuda":
        return batch
    return max(1, 127 // -(-heads // 4))


def depends_on_length(model: object) -> bool:
    """Whether any rotary embedding of a model changes its frequencies with the sequence's length."""
    return rotation_limit(model) is not None


def rotation_limit(model: object) -> int | None:
    """The sequence length up to which a model's rotary frequencies do not depend on the length; None: they never do."""
    if not isinstance(model, nn.Module):
        return None
    held = [value for module in model.modules() for value in vars(module).values() if isinstance(value, RoPE)]
    return min((rope.limit for rope in held if rope.limit is not None), default=None)


def _plain(theta: float, dims: int) -> list[float]:
    return [theta ** (i / dims) for i in range(0, dims, 2)]


def _llama3(parameters: RopeParameters, dims: int) -> list[float]:
    """Llama 3.1: long wavelengths are stretched by ``factor``, short ones kept, those between interpolated."""
    factor, original = _known(parameters.factor), _known(parameters.original_max_position_embeddings)
    low, high = _known(parameters.low_freq_factor), _known(parameters.high_freq_factor)
    scaled = []
    for wavelength in _plain(parameters.rope_theta, dims):
        turns = original / (2 * math.pi * wavelength)  # rotations within the original context
        if turns > high:
            scaled.append(wavelength)
        elif turns < low:
            scaled.append(wavelength * factor)
        else:
            smooth = (turns - low) / (high - low)
            scaled.append(1 / ((1 - smooth) / (wavelength * factor) + smooth / wavelength))
    return scaled


def _yarn(parameters: RopeParameters, dims: int) -> tuple[list[float], float]:
    """YaRN (Peng et al., 2023): a ramp between interpolation and extrapolation, and a temperature on the logits."""
    theta, factor = parameters.rope_theta, _known(parameters.factor)
    original = _known(parameters.original_max_position_embeddings)

    def dimension_with(rotations: float) -> float:
        return dims * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = dimension_with(parameters.beta_fast or 32)
    high = dimension_with(parameters.beta_slow or 1)
    if parameters.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dims - 1)
    if low == high:
        high += 0.001
    scaled = []
    for i, wavelength in enumerate(_plain(theta, dims)):
        interpolated = min(max((i - low) / (high - low), 0.0), 1.0)
        scaled.append(1 / (interpolated / (factor * wavelength) + (1 - interpolated) / wavelength))
    return scaled, parameters.attention_factor or _yarn_attention_factor(parameters, factor)


def _yarn_attention_factor(parameters: RopeParameters, factor: float) -> float:
    def temperature(mscale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    if parameters.mscale and parameters.mscale_all_dim:
        return temperature(parameters.mscale) / temperature(parameters.mscale_all_dim)
    return temperature(1.0)


def _longrope(parameters: RopeParameters, dims: int, length: int) -> tuple[list[float], list[float], float]:
    """LongRoPE (Ding et al., 2024): one searched factor a feature pair, a second set beyond the original length."""
    original = _known(parameters.original_max_position_embeddings)
    factor = parameters.factor or length / original
    attention_factor = parameters.attention_factor
    if attention_factor is None:
        attention_factor = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    plain = _plain(parameters.rope_theta, dims)
    short, long = _known(parameters.short_factor), _known(parameters.long_factor)
    for name, factors in (("short_factor", short), ("long_factor", long)):
        if len(factors) != len(plain):
            raise ValueError(f"rope_parameters.{name} has {len(factors)} entries, expected head_dim / 2 = {len(plain)}")
    return (
        [f * w for f, w in zip(short, plain, strict=True)],
        [f * w for f, w in zip(long, plain, strict=True)],
        attention_factor,
    )


def _as_array(values: list[float]) -> mx.array:
    return mx.array(values, dtype=mx.float32)


def _known(value: _T | None) -> _T:
    assert value is not None  # RopeParameters refuses a type without the keys it needs
    return value
