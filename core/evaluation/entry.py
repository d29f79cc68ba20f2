"""``evaluate``: reads a text in windows, scores its tokens, and returns the figures."""

from __future__ import annotations

import math
import time
from array import array
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from core.device import describe, wired_memory
from core.errors import EvaluationError, TokenizerError
from core.evaluation.result import SCHEMA, Evaluation, ModelSummary, divergence_of, mean_and_error, perplexity_of
from core.evaluation.scores import score_tokens
from core.evaluation.settings import check_settings, complete_settings
from core.evaluation.windows import Window, plan_windows
from core.weights.dtypes import spelling
from core.weights.quantization import settings_of

if TYPE_CHECKING:
    from core.language_model import LanguageModel

Progress = Callable[[int, int], None]
"""Called with the number of tokens scored so far, and the total."""


def evaluate(
    lm: LanguageModel,
    text: str | Sequence[int],
    *,
    against: LanguageModel | None = None,
    context: int | None = None,
    stride: int | None = None,
    max_tokens: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Perplexity of a model on a text, and its divergence from another model.

    The text is tokenized as a whole, with the tokenizer's BOS before it, and read in windows as in Hugging Face's
    recipe ("Perplexity of fixed-length models"): the same tokens are scored, each with the same tokens before it. The
    mean here is over tokens. The recipe's own code gives a window that scores n tokens the weight n - 1, even where
    shifting the labels drops none, so its figure differs a little.

    Args:
        lm: the model.
        text: or ids, used as they are.
        against: a reference model with the same tokenizer; both are in memory together.
        context: tokens of a window; None takes the model's context, 2,048 at most.
        stride: tokens from one window to the next, at most ``context``; None takes half the context, as the recipe
            does. A smaller one gives each token more context and costs more.
        max_tokens: read only so many tokens of the text, BOS included.
        progress: called with the number of tokens scored so far, and the total.

    Raises:
        UsageError: a setting out of range.
        TokenizerError: a text, and no tokenizer.
        EvaluationError: fewer than two tokens, models that cannot be compared, or a model that computes NaN.
    """
    check_settings(context, stride, max_tokens)
    models = [lm] if against is None else [lm, against]
    context, stride = complete_settings(_limit(models), context, stride)
    ids, ends = _encode(lm, text)
    if against is not None:
        _check_comparable(lm, against, text, ids)
    ids = ids[:max_tokens]
    _check_ids(lm, ids)
    windows = list(plan_windows(len(ids), context, stride))
    total = sum(window.scored for window in windows)
    losses, divergences, agreements = array("d"), array("d"), 0
    started = time.perf_counter()
    with wired_memory():
        for scores in score_tokens(
            lm.model,
            ids,
            iter(windows),
            vocab_size=lm.config.vocab_size,
            reference=None if against is None else against.model,
        ):
            losses.extend(scores.losses)
            divergences.extend(scores.divergences)
            agreements += scores.agreements
            if progress is not None:
                progress(len(losses), total)
    seconds = time.perf_counter() - started
    if not all(map(math.isfinite, losses)):
        raise EvaluationError("the model gives a token of the text no probability, or NaN", where=_source(lm))
    if against is not None and not all(map(math.isfinite, divergences)):
        raise EvaluationError(
            f"the divergence from {_source(against)} is not finite",
            where=_source(lm),
            hint="One model computes NaN, or rules out a token that the other does not.",
        )
    nats, error = mean_and_error(losses)
    size = _bytes(text, ends, windows) if isinstance(text, str) else None
    return Evaluation(
        schema=SCHEMA,
        model=_summary(lm),
        tokens=total,
        nats_per_token=nats,
        standard_error=error,
        perplexity=perplexity_of(nats),
        bits_per_byte=nats * total / math.log(2) / size if size else None,
        bytes=size,
        context=context,
        stride=stride,
        windows=len(windows),
        seconds=seconds,
        tokens_per_second=total / seconds,
        divergence=None if against is None else divergence_of(divergences, agreements, _summary(against)),
    )


def _limit(models: list[LanguageModel]) -> int | None:
    limits = [getattr(lm.config, "max_position_embeddings", None) for lm in models]
    return min((limit for limit in limits if limit is not None), default=None)


def _encode(lm: LanguageModel, text: str | Sequence[int]) -> tuple[list[int], list[int]]:
    """The ids of a text, and the end of each in it, in characters; for ids, no ends."""
    if not isinstance(text, str):
        return list(text), []
    if lm.tokenizer is None:
        raise TokenizerError("this model was loaded without a tokenizer", hint="Give token ids, or load with one.")
    return lm.tokenizer.encode_with_ends(text)


def _check_ids(lm: LanguageModel, ids: Sequence[int]) -> None:
    if len(ids) < 2:
        raise EvaluationError(
            "the text is too short: nothing comes before its only token" if ids else "the text is empty",
            expected="2 tokens or more",
            found=len(ids),
        )
    strange = next((token_id for token_id in ids if not 0 <= token_id < lm.config.vocab_size), None)
    if strange is not None:
        raise EvaluationError(
            f"the token id {strange} is not in the model's vocabulary",
            where=_source(lm),
            expected=f"0 to {lm.config.vocab_size - 1}",
        )


def _check_comparable(lm: LanguageModel, against: LanguageModel, text: str | Sequence[int], ids: Sequence[int]) -> None:
    """Checks that both models have the same tokens, so that their predictions can be compared.

    Raises:
        EvaluationError: they do not.
    """
    problem = None
    if lm.config.vocab_size != against.config.vocab_size:
        problem = f"vocabularies of {lm.config.vocab_size} and {against.config.vocab_size} tokens"
    elif lm.tokenizer is not None and against.tokenizer is not None:
        if lm.tokenizer.vocabulary != against.tokenizer.vocabulary:
            problem = "tokens of different names under one id"
        elif isinstance(text, str) and against.tokenizer.encode(text) != list(ids):
            problem = "tokenizers that cut the text into different tokens"
    if problem is not None:
        raise EvaluationError(
            f"the models cannot be compared: {_source(lm)} and {_source(against)} have {problem}",
            hint="Perplexity a token and KL divergence need one tokenizer; bits per byte can be compared without.",
        )


def _bytes(text: str, ends: Sequence[int], windows: Sequence[Window]) -> int:
    """UTF-8 bytes of the text that the scored tokens cover."""
    return sum(len(text[ends[w.first - 1] : ends[w.stop - 1]].encode()) for w in windows)


def _source(lm: LanguageModel) -> str:
    return lm.report.plan.source


def _summary(lm: LanguageModel) -> ModelSummary:
    return ModelSummary(
        source=_source(lm),
        model_type=lm.config.model_type,
        quantization="; ".join(map(str, settings_of(lm.model))) or "none",
        compute_dtype=spelling(lm.report.plan.compute_dtype),
        device=describe(),
    )
