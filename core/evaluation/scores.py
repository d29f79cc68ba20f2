"""Scores single tokens: their losses, and the divergence of one model's predictions from another's.

The logits of only a few positions are in memory at a time, whatever the length of the text or the window.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx

from core.evaluation.windows import Window, batches
from core.generation.loop import PREFILL_CHUNK, CausalLM
from core.nn import rotation_limit

LOGITS_AT_ONCE = 1 << 24
"""Logits of one model that exist at once: 64 MiB in float32."""


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Scores of consecutive tokens, in nats.

    Attributes:
        losses: ``-log p(token | tokens before it in its window)``.
        divergences: ``KL(reference ‖ model)`` of the two predictions; empty without a reference.
        agreements: for how many tokens both models predict the same most likely one.
    """

    losses: list[float]
    divergences: list[float]
    agreements: int = 0


def score_tokens(
    model: CausalLM,
    ids: Sequence[int],
    windows: Iterator[Window],
    *,
    vocab_size: int,
    reference: CausalLM | None = None,
    tokens_at_once: int = PREFILL_CHUNK,
    logits_at_once: int = LOGITS_AT_ONCE,
) -> Iterator[TokenScores]:
    """Scores the tokens of ``windows``, in order, a few at a time.

    Args:
        model, reference: have ``make_cache``, ``hidden_states`` and ``head``, as ``core.nn.Decoder``.
        ids: of the text.
        windows: from ``plan_windows``.
        vocab_size: logits of a position.
        tokens_at_once: size of a batch of windows, about. A longer window is read in pieces, through a cache, except by
            models whose rotary frequencies depend on its length.
        logits_at_once: how many of one model's logits may exist at once.
    """
    rows = max(1, logits_at_once // vocab_size)
    for batch in batches(windows, tokens_at_once):
        tokens = mx.array([ids[window.start : window.stop] for window in batch], dtype=mx.int32)
        scored = batch[0].scored
        targets = tokens[:, -scored:].reshape(-1)
        # The last token only predicts one outside of the window, so it is not read.
        hidden = _hidden_states(model, tokens[:, :-1], scored, tokens_at_once)
        other = None if reference is None else _hidden_states(reference, tokens[:, :-1], scored, tokens_at_once)
        for start in range(0, targets.size, rows):
            part = slice(start, start + rows)
            logits = model.head(hidden[part])
            if reference is None or other is None:
                yield TokenScores(_losses(logits, targets[part]).tolist(), [])  # type: ignore[arg-type]
            else:
                yield _compared(logits, reference.head(other[part]), targets[part])


def _hidden_states(model: CausalLM, tokens: mx.array, kept: int, tokens_at_once: int) -> mx.array:
    """The head's input at the last ``kept`` positions of each row, ``[batch * kept, hidden_size]``."""
    batch, seq = tokens.shape
    limit = rotation_limit(model)
    # If rotary frequencies depend on the length, an early piece would be rotated as in a shorter window.
    if batch * seq <= tokens_at_once or (limit is not None and seq > limit):
        hidden = model.hidden_states(tokens)[:, -kept:]
    else:
        step = max(1, tokens_at_once // batch)
        cache, parts = model.make_cache(batch), []
        for start in range(0, seq, step):
            part = model.hidden_states(tokens[:, start : start + step], cache)
            new = part[:, max(0, seq - kept - start) :]
            mx.eval(new, cache.arrays())
            parts.append(new)
        hidden = mx.concatenate(parts, axis=1)
    hidden = hidden.reshape(-1, hidden.shape[-1])
    mx.eval(hidden)
    return hidden


def _losses(logits: mx.array, targets: mx.array) -> mx.array:
    """Cross entropy, computed in float32 whatever the model computes in: ``[rows, vocab]``, ``[rows]`` → ``[rows]``."""
    logits = logits.astype(mx.float32)
    chosen = mx.take_along_axis(logits, targets[:, None], axis=-1).squeeze(-1)
    return mx.logsumexp(logits, axis=-1) - chosen


def _compared(logits: mx.array, reference: mx.array, targets: mx.array) -> TokenScores:
    losses, divergences = _losses(logits, targets), kl_divergence(reference, logits)
    same = mx.argmax(logits, axis=-1) == mx.argmax(reference, axis=-1)
    mx.eval(losses, divergences, same)
    return TokenScores(losses.tolist(), divergences.tolist(), int(same.sum().item()))  # type: ignore[arg-type]


def kl_divergence(reference: mx.array, logits: mx.array) -> mx.array:
    """``KL(reference ‖ model)`` in nats, from logits ``[rows, vocab]``, in float32: ``[rows]``, 0 or more."""
    log_p, log_q = _log_softmax(reference), _log_softmax(logits)
    p = mx.exp(log_p)
    # A token without probability adds nothing, even if its logit is minus infinity in both models.
    terms = mx.where(p > 0, p * (log_p - log_q), 0.0)
    # It is not negative in exact arithmetic; a sum of rounded terms can be, by some 1e-7.
    return mx.maximum(terms.sum(axis=-1), 0.0)


def _log_softmax(logits: mx.array) -> mx.array:
    logits = logits.astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)
