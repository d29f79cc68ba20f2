"""``Decoder``: the model around the blocks of a decoder-only language model: embedding, final norm, language head.

A plugin builds the blocks, which hold everything that differs between architectures.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import ModuleType

import mlx.core as mx
import mlx.nn as nn

from core.errors import UsageError
from core.nn.cache import Cache
from core.nn.embedding import as_linear, embed
from core.nn.groups import CacheGroups, GroupsPlan
from core.nn.linear import Linear
from core.nn.pacing import Pace
from core.nn.rope import rotation_limit
from core.nn.settings import CacheSettings
from core.nn.spec import CacheSpec
from core.nn.step import Step, StepPlan


class Decoder(nn.Module):
    """Token ids in, logits out.

    Args:
        vocab_size, hidden_size: sizes of the embedding.
        blocks: modules with the block protocol ``block(x, step)``.
        norm: the norm before the language head.
        tie_word_embeddings: the head multiplies by the embedding's own matrix.
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        blocks: Sequence[nn.Module],
        norm: nn.Module,
        *,
        tie_word_embeddings: bool = False,
    ) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.embed_tokens = nn.Embedding(vocab_size, hidden_size)
        self.layers = list(blocks)
        self.norm = norm
        if not tie_word_embeddings:
            self.lm_head = Linear(hidden_size, vocab_size, bias=False)
        self._cache_specs: tuple[CacheSpec, ...] = ()
        self._rotation_limit: int | None = None
        self._identity = object()  # identifies the model to its caches

    def set_cache_specs(self, specs: Sequence[CacheSpec]) -> None:
        """Sets the cache spec of each block; core calls it once, with the result of the plugin's ``make_cache``."""
        self._cache_specs = tuple(specs)
        self._rotation_limit = rotation_limit(self)  # goes through every module, so it is called once

    def make_cache(
        self,
        batch: int = 1,
        *,
        max_kv_tokens: int | None = None,
        kept_tokens: int = 4,
        kv_bits: int | None = None,
        kv_group_size: int = 64,
    ) -> Cache:
        """An empty cache for ``batch`` sequences; settings as in ``CacheSettings``.

        Raises:
            UsageError: a setting out of range, or heads that cannot be packed in such groups.
        """
        settings = CacheSettings(max_kv_tokens, kept_tokens, kv_bits, kv_group_size)
        return Cache(self._cache_specs, batch, settings, self._identity, self._rotation_limit)

    def __call__(
        self, tokens: mx.array, cache: Cache | CacheGroups | None = None, lengths: Sequence[int] | None = None
    ) -> mx.array:
        """Logits of the next token at every position.

        Args:
            tokens: integers ``[batch, seq]``.
            cache: holds the tokens before these, and stores these; None starts at position 0 and stores nothing.
            lengths: real tokens of each row, where rows are padded on the right; None when all are real. Not given with
                groups of caches, which have their own.

        Returns:
            ``[batch, seq, vocab_size]``; undefined where a row is padding.
        """
        return self.head(self.hidden_states(tokens, cache, lengths))

    def hidden_states(
        self, tokens: mx.array, cache: Cache | CacheGroups | None = None, lengths: Sequence[int] | None = None
    ) -> mx.array:
        """The blocks' output before the final norm, ``[batch, seq, hidden_size]``; arguments as for a call."""
        if tokens.ndim != 2 or tokens.shape[1] == 0:
            raise UsageError("tokens must be a non-empty array [batch, seq]", found=f"shape {tuple(tokens.shape)}")
        if not mx.issubdtype(tokens.dtype, mx.integer):
            raise UsageError("tokens must be integers", found=str(tokens.dtype))
        batch, seq = tokens.shape
        blocks = len(self.layers)
        plan: StepPlan | GroupsPlan
        if isinstance(cache, CacheGroups):
            plan = cache.plan(batch, seq, blocks)
        else:
            plan = StepPlan(batch, seq, blocks, cache, lengths)
        if cache is None:
            return self._through_blocks(tokens, plan.steps())
        x = _cpu_library().hidden_states(self, tokens, plan.plans, cache.commit)
        if x is not None:
            return x.reshape(batch, seq, -1)
        x = self._through_blocks(tokens, plan.steps())
        cache.commit()
        return x

    def _through_blocks(self, tokens: mx.array, steps: Sequence[Step]) -> mx.array:
        pace = Pace(tokens.size)
        x = embed(self.embed_tokens, tokens, self._compute_dtype)
        for layer, step in zip(self.layers, steps, strict=True):
            x = layer(x, step)
            pace.after(x)
        return x

    @property
    def _compute_dtype(self) -> mx.Dtype | None:
        """The dtype of activations, which is that of the final norm's weight; None if it has none."""
        weight = self.norm.get("weight")
        return weight.dtype if isinstance(weight, mx.array) else None

    def head(self, x: mx.array) -> mx.array:
        """Final norm and language head: ``[..., hidden_size]`` → ``[..., vocab_size]``."""
        logits: mx.array | None = _cpu_library().head(self, x)
        if logits is not None:
            return logits
        x = self.norm(x)
        return self.lm_head(x) if "lm_head" in self else as_linear(self.embed_tokens, x)


@functools.cache
def _cpu_library() -> ModuleType:
    """``core.cpu_pass.forward``, imported late because it imports this package."""
    from core.cpu_pass import forward

    return forward
