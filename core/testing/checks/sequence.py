"""Checks of sequences: caches, batches, causality, windows and positions, each compared with one plain forward pass."""

from __future__ import annotations

import mlx.core as mx
import pytest

from core.nn import depends_on_length
from core.nn.cache import KeyValues
from core.nn.step import StepPlan
from core.testing.base import KitBase
from core.testing.comparing import demand, demand_close, difference

_FAR = 300  # tokens: a longer window would make the checks slow
_CACHE_HINT = "Positions must come from step.positions, and keys and values go through step.attend (or step.state)."


class SequenceChecks(KitBase):
    """How the blocks use positions, masks and caches."""

    def test_cached_equals_uncached(self) -> None:
        """A failure means that tokens in a cache have another effect than without one: look at positions, mask and
        window.

        The same prompt goes through a cache in chunks of several sizes.
        """
        tokens, whole = self._compared()
        n = tokens.shape[1]
        for sizes in ([n], [1, 2, n - 3], [n - 4, 1, 3], [7] * (n // 7) + [n % 7], [17, 1, 1, n - 19]):
            chunks = [size for size in sizes if size]
            cache = self.subject.model.make_cache()
            found = self.subject.chunked(tokens, chunks, cache)
            message = f"the logits of {n} tokens differ when they pass a cache in chunks of {chunks}\n  {_CACHE_HINT}"
            demand_close(found, whole, self.tolerance, message)
            demand(cache.lengths == [n], f"after {n} tokens the cache holds {cache.lengths}")

    def test_prefill_equals_stepwise(self) -> None:
        """A failure means that decoding token by token gives other logits than reading the whole prompt."""
        tokens, whole = self._compared()
        found = self.subject.chunked(tokens, [1] * tokens.shape[1])
        for position in range(tokens.shape[1]):
            message = f"token by token, the logits differ first at position {position}\n  {_CACHE_HINT}"
            demand_close(found[:, position], whole[:, position], self.tolerance, message)

    def test_batch_equals_single_rows(self) -> None:
        """A failure means that the rows of a batch affect each other, or use each other's positions or padding.

        Prompts of different lengths, padded with random tokens, are read together and continued. Each row must equal
        its result alone. A block must not use one position for all rows, mix over the first axis, or store anything on
        itself.
        """
        subject, n = self.subject, self.subject.length
        self._skip_if_rotations_depend_on_length()
        lengths, steps = [3, n - 6, n // 2, 1], 6
        rows = [subject.tokens(length + steps, seed) for seed, length in enumerate(lengths)]
        alone = [subject.logits(row) for row in rows]
        padded = mx.concatenate(
            [
                mx.concatenate([row[:, :length], subject.tokens(max(lengths) - length, 90)], axis=1)
                for row, length in zip(rows, lengths, strict=True)
            ]
        )
        for cached in (False, True):
            cache = subject.model.make_cache(len(rows)) if cached else None
            found = subject.logits(padded, cache, lengths)
            how = "with" if cached else "without"
            for row, length in enumerate(lengths):
                message = f"row {row} of a ragged batch, {length} tokens, differs from its result alone ({how} a cache)"
                demand_close(found[row, :length], alone[row][0, :length], self.tolerance, message)
        for step in range(steps):
            each = [row[:, length + step] for row, length in zip(rows, lengths, strict=True)]
            found = subject.logits(mx.stack(each), cache)
            for row, length in enumerate(lengths):
                message = f"step {step} after a ragged batch: row {row}, {length} tokens, differs from its result alone"
                demand_close(found[row, 0], alone[row][0, length + step], self.tolerance, message)

    def test_future_tokens_change_nothing(self) -> None:
        """A failure means that a token sees later ones (no causal mask), or sees no other tokens."""
        tokens, whole = self._prompt()
        for position in (1, tokens.shape[1] // 2, tokens.shape[1] - 1):
            changed = mx.concatenate([tokens[:, :position], (tokens[:, position:] + 1) % self._vocabulary], axis=1)
            found = self.subject.logits(changed)
            message = f"other tokens from position {position} on change the logits before it: is the mask causal?"
            demand_close(found[:, :position], whole[:, :position], self.tolerance / 10, message)
            moved = difference(found[:, position:], whole[:, position:]) > self.tolerance
            demand(moved, f"other tokens from position {position} on change no logit: the model ignores the tokens")

    def test_window_is_exact(self) -> None:
        """A failure means that blocks see further back than their windows, or less far.

        All blocks together reach back the sum of (window - 1) tokens: that token has an effect, the one before has
        none. Without windows, the first token has an effect on the last logits.
        """
        subject = self.subject
        tokens, whole = self._prompt()
        last = tokens.shape[1] - 1
        told = getattr(subject.config, "sliding_window", None)
        if told is not None:
            windows = sorted({spec.window for spec in subject.specs if spec.window is not None})
            demand(told in windows, f"the config has a sliding_window of {told}, make_cache has windows {windows}")
        reach = last if subject.reach is None else subject.reach
        demand(reach <= _FAR, f"the windows reach back {reach} tokens: give the kit's config a sliding_window of 8")
        counts = self._last_logits_without(tokens, last - reach)
        demand(
            difference(counts, whole[:, last]) > self.tolerance / 10,
            f"the last token does not see the one {reach} before it, which the windows of make_cache include",
        )
        if reach < last:
            hidden = self._last_logits_without(tokens, last - reach - 1)
            message = f"the last token sees the one {reach + 1} before it, which the windows of make_cache leave out"
            demand_close(hidden, whole[:, last], self.tolerance / 100, message)

    def test_order_of_earlier_tokens_matters(self) -> None:
        """A failure means that a block ignores the order of earlier tokens: positions are not used.

        The first block alone gets three inputs, and then two of them exchanged; the output at the last must change. Set
        ``order_matters = False`` for an architecture without positions.
        """
        if not self.order_matters:
            pytest.skip("the architecture is said to have no positions")
        model = self.subject.model
        x = model.embed_tokens(self.subject.tokens(3))
        plan = StepPlan(1, 3, len(model.layers))
        step = plan.steps()[0]
        one, other = model.layers[0](x, step), model.layers[0](x[:, mx.array([1, 0, 2])], step)
        moved = difference(other[:, 2], one[:, 2]) > self.tolerance
        demand(moved, "exchanging two earlier tokens changes nothing: does the block use step.positions?")

    def test_cache_is_what_its_spec_says(self) -> None:
        """A failure means that ``make_cache`` describes other arrays than the blocks keep, so memory is estimated
        wrongly."""
        cache = self.subject.model.make_cache(2)
        tokens = mx.concatenate([self.subject.tokens(5, 1), self.subject.tokens(5, 2)])
        logits = self.subject.logits(tokens, cache)
        for index, (block, spec) in enumerate(zip(cache.blocks, self.subject.specs, strict=True)):
            if not isinstance(block, KeyValues):
                used = any(bool(mx.any(array != 0).item()) for array in block.arrays())
                demand(used, f"block {index} keeps state by its CacheSpec, and has written none")
                continue
            demand(block.keys is not None, f"block {index} keeps keys and values by its CacheSpec, and has kept none")
            assert block.keys is not None
            assert block.values is not None
            found = block.keys.shape[1], block.keys.shape[3], block.values.shape[3]
            told = spec.heads, spec.head_dim, spec.value_head_dim
            demand(found == told, f"block {index}: (heads, head_dim, value_head_dim) are {found}, its CacheSpec {told}")
            dtype = spec.dtype or logits.dtype
            demand(block.keys.dtype == dtype, f"block {index} keeps {block.keys.dtype}, expected {dtype}")

    def test_a_call_leaves_no_trace(self) -> None:
        """A failure means that an earlier call changes a later one: something is stored on a module, not in the
        cache."""
        tokens, whole = self._prompt()
        self.subject.logits(self.subject.tokens(11, 5), self.subject.model.make_cache())
        again = self.subject.logits(tokens)
        demand(
            mx.array_equal(again, whole).item(), "the same tokens give different logits after a call with other tokens"
        )

    @property
    def _vocabulary(self) -> int:
        return self.subject.config.vocab_size

    def _compared(self) -> tuple[mx.array, mx.array]:
        """``_prompt``, for a comparison between different lengths."""
        self._skip_if_rotations_depend_on_length()
        return self._prompt()

    def _prompt(self) -> tuple[mx.array, mx.array]:
        """A prompt longer than all windows reach, and its logits without a cache."""
        tokens = self.subject.tokens(self.subject.length)
        whole = self.subject.logits(tokens)
        demand(bool(mx.all(mx.isfinite(whole)).item()), "the logits are not finite")
        return tokens, whole

    def _last_logits_without(self, tokens: mx.array, position: int) -> mx.array:
        """The last logits with another token at a position."""
        own = tokens[:, position : position + 1]
        other = (own + self._vocabulary // 2) % self._vocabulary
        changed = mx.concatenate([tokens[:, :position], other, tokens[:, position + 1 :]], axis=1)
        return self.subject.logits(changed)[:, -1]

    def _skip_if_rotations_depend_on_length(self) -> None:
        if depends_on_length(self.subject.model):
            pytest.skip(
                "the rotations depend on the length of the sequence, and cached keys keep theirs, as transformers' do"
            )
