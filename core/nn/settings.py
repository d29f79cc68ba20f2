"""``CacheSettings``: a user's settings of a model's caches: a bound on tokens, and packed keys and values.

They hold for any architecture. A block whose spec is ``state`` has no keys, and ignores them.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass

from core.errors import UsageError
from core.nn.span import Limit, Reach
from core.nn.spec import CacheSpec

_BITS = (4, 8)
_GROUP_SIZES = (128, 64, 32)  # of mx.quantize


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """Settings of ``Decoder.make_cache``; two caches with equal specs and settings can continue each other.

    Attributes:
        max_kv_tokens: tokens that a query sees at most: the first ``kept_tokens``, and the last ones including its own
            (StreamingLLM, Xiao et al., 2023, at original positions). In a block with a sliding window the smaller bound
            holds: a window of at most this many tokens does not change. None: no bound.
        kept_tokens: tokens at the start that stay visible, where there is a bound.
        kv_bits: keys and values are stored in 4 or 8 bits, by ``mx.quantize`` (affine); None stores floats.
        kv_group_size: elements of a head that share a scale and a bias: 32, 64 or 128.

    Raises:
        UsageError: a setting out of range.
    """

    max_kv_tokens: int | None = None
    kept_tokens: int = 4
    kv_bits: int | None = None
    kv_group_size: int = 64

    def __post_init__(self) -> None:
        for name in ("max_kv_tokens", "kept_tokens", "kv_bits", "kv_group_size"):
            value = getattr(self, name)
            if value is None and name in ("max_kv_tokens", "kv_bits"):
                continue
            try:
                object.__setattr__(self, name, operator.index(value))
            except TypeError:
                raise UsageError(f"{name} must be an integer", found=repr(value)) from None
        if self.kept_tokens < 0:
            raise UsageError("kept_tokens must not be negative", found=self.kept_tokens)
        if self.max_kv_tokens is not None and self.max_kv_tokens <= self.kept_tokens:
            raise UsageError(
                "max_kv_tokens leaves no room for recent tokens",
                expected=f"more than kept_tokens, {self.kept_tokens}",
                found=self.max_kv_tokens,
            )
        if self.kv_bits is not None and self.kv_bits not in _BITS:
            raise UsageError("kv_bits is not supported", expected="4 or 8, or None for floats", found=self.kv_bits)
        if self.kv_bits is not None and self.kv_group_size not in _GROUP_SIZES:
            raise UsageError("kv_group_size is not supported", expected="32, 64 or 128", found=self.kv_group_size)

    def check(self, specs: Sequence[CacheSpec]) -> None:
        """Refuses bits for heads that do not divide into groups.

        Raises:
            UsageError: names the block, and the group sizes that are possible.
        """
        if self.kv_bits is None:
            return
        dims = [dim for spec in specs if spec.kind != "state" for dim in (spec.head_dim, spec.value_head_dim)]
        would_do = [str(size) for size in sorted(_GROUP_SIZES) if not any(dim % size for dim in dims)]
        for block, spec in enumerate(specs):
            for name, dim in (("head_dim", spec.head_dim), ("value_head_dim", spec.value_head_dim)):
                if dim % self.kv_group_size:
                    hint = f"kv_group_size={' or '.join(would_do)} does it."
                    raise UsageError(
                        f"block {block} cannot keep keys and values in {self.kv_bits} bits: its {name} does not divide "
                        "into groups",
                        expected=f"a multiple of kv_group_size, {self.kv_group_size}",
                        found=dim,
                        hint=hint if would_do else "No group size does it for this model: leave kv_bits out.",
                    )

    def reach(self, spec: CacheSpec) -> Reach:
        """Which tokens a block with this spec (not ``state``) keeps."""
        if self.max_kv_tokens is None or (spec.window is not None and spec.window <= self.max_kv_tokens):
            return spec.window
        return Limit(self.kept_tokens, self.max_kv_tokens)
