"""The table of samplers: one entry a setting, in the order in which the command line's help lists them.

A new sampler is one entry here and one class in ``core.generation.processors``. ``Sampling`` and ``SamplingOptions``
also spell the settings out, for type checkers; a test says what they lack.

The order of the stages, and why it is the default:

1. ``logit_bias``, ``penalties`` (repetition, frequency, presence), ``dry``: what changes logits, on the model's own
   scale. transformers and llama.cpp agree on this place and order (transformers has no DRY; it follows llama.cpp).
2. ``processors``: the user's own, which then see what the settings above made of the logits.
3. ``temperature``. The two disagree: transformers scales before it truncates, llama.cpp after. Settings that come with
   a checkpoint (``generation_config.json``) were chosen for transformers, so its order is the default.
4. ``top_k``, ``top_p``, ``min_p``, ``typical_p``: in this order in transformers, each on what the one before left.
5. ``xtc``: last, on what the truncations left, as in llama.cpp.

What is forbidden (``suppress_tokens`` and the like) is so before all that, and stays so.
"""

from __future__ import annotations

import math

from core.sampling.kinds import Bias, Count, Ids, Number, Processors, Words
from core.sampling.setting import Flag, Setting, Stage

_PROCESSORS = "core.generation.processors"
FORBIDDEN = Stage("forbidden", 0)
PENALTIES = Stage("penalties", 20, f"{_PROCESSORS}.penalties:Penalties")
DRY = Stage("dry", 30, f"{_PROCESSORS}.dry:Dry", history=True)
XTC = Stage("xtc", 100, f"{_PROCESSORS}.xtc:Xtc", draws=True, probabilities=True)
_PROBABILITY = Number("more than 0, at most 1", lambda x: 0 < x <= 1)
_SHARE = Number("0 to 1", lambda x: 0 <= x <= 1)
_PENALTY = Number("-1000 to 1000", lambda x: -1000 <= x <= 1000)
_CONTEXT = Count(1, optional=True, note=", or None for all")

SAMPLERS = (
    Setting(
        "temperature",
        Number("0 or more", lambda x: 0 <= x < math.inf),
        default=0.0,
        stage=Stage("temperature", 50, f"{_PROCESSORS}.truncation:Temperature", draws=True),
        off=1.0,
        flag=Flag("T", "0 takes the likeliest token", "-t"),
        keys=("temperature",),
    ),
    Setting(
        "top_k",
        Count(0, note=" (0 is all)"),
        default=0,
        stage=Stage("top_k", 60, f"{_PROCESSORS}.truncation:TopK", draws=True),
        off=0,
        flag=Flag("K", "choose among the K likeliest; 0 means all"),
        keys=("top_k",),
    ),
    Setting(
        "top_p",
        _PROBABILITY,
        default=1.0,
        stage=Stage("top_p", 70, f"{_PROCESSORS}.truncation:TopP", draws=True, probabilities=True),
        off=1.0,
        flag=Flag("P", "choose among the likeliest, up to this probability"),
        keys=("top_p",),
    ),
    Setting(
        "min_p",
        _SHARE,
        default=0.0,
        stage=Stage("min_p", 80, f"{_PROCESSORS}.truncation:MinP", draws=True, probabilities=True),
        off=0.0,
        flag=Flag("P", "choose among those at least P times as likely as the likeliest"),
        keys=("min_p",),
    ),
    Setting(
        "typical_p",
        _PROBABILITY,
        default=1.0,
        stage=Stage("typical_p", 90, f"{_PROCESSORS}.truncation:TypicalP", draws=True, probabilities=True),
        off=1.0,
        flag=Flag("P", "choose among those of typical information, up to this probability"),
        keys=("typical_p",),
    ),
    Setting(
        "xtc_probability",
        _SHARE,
        default=0.0,
        stage=XTC,
        off=0.0,
        flag=Flag("P", "how often the likeliest above the threshold are left out"),
    ),
    Setting(
        "xtc_threshold",
        Number("more than 0, at most 0.5: of two likely choices, one is excluded", lambda x: 0 < x <= 0.5),
        default=0.1,
        stage=XTC,
        flag=Flag("P", "tokens above it, the least likely of them aside, are left out"),
    ),
    Setting(
        "repetition_penalty",
        Number("more than 0, at most 1000", lambda x: 0 < x <= 1000),
        default=1.0,
        stage=PENALTIES,
        off=1.0,
        flag=Flag("X", "divides the logits of tokens that have been; 1 is none"),
        keys=("repetition_penalty",),
    ),
    Setting(
        "presence_penalty",
        _PENALTY,
        default=0.0,
        stage=PENALTIES,
        off=0.0,
        flag=Flag("X", "subtracted from the logit of a token that has been"),
    ),
    Setting(
        "frequency_penalty",
        _PENALTY,
        default=0.0,
        stage=PENALTIES,
        off=0.0,
        flag=Flag("X", "subtracted for each time that a token has been"),
    ),
    Setting(
        "penalty_context",
        _CONTEXT,
        default=None,
        stage=PENALTIES,
        flag=Flag("N", "penalties look at the last N tokens only"),
    ),
    Setting(
        "dry_multiplier",
        Number("0 to 1000", lambda x: 0 <= x <= 1000),
        default=0.0,
        stage=DRY,
        off=0.0,
        flag=Flag("X", "penalty of going on with a repeated sequence (DRY)"),
    ),
    Setting(
        "dry_base",
        Number("1 to 1000", lambda x: 1 <= x <= 1000),
        default=1.75,
        stage=DRY,
        flag=Flag("X", "factor of that penalty for each token more"),
    ),
    Setting(
        "dry_allowed_length",
        Count(1),
        default=2,
        stage=DRY,
        flag=Flag("N", "sequences up to this length may be repeated"),
    ),
    Setting("dry_context", _CONTEXT, default=None, stage=DRY, flag=Flag("N", "DRY looks at the last N tokens only")),
    Setting(
        "dry_breakers",
        Ids(),
        default=(),
        stage=DRY,
        flag=Flag("IDS", "token ids that end a sequence for DRY, with commas between"),
    ),
    Setting(
        "logit_bias",
        Bias(),
        default={},
        stage=Stage("logit_bias", 10, f"{_PROCESSORS}.bias:LogitBias"),
        off={},
        flag=Flag("ID=X", "adds X to a token's logit; may be repeated"),
    ),
    Setting("suppress_tokens", Ids(), default=(), stage=FORBIDDEN, off=(), keys=("suppress_tokens",)),
    Setting("begin_suppress_tokens", Ids(), default=(), stage=FORBIDDEN, off=(), keys=("begin_suppress_tokens",)),
    Setting("bad_words_ids", Words(), default=(), stage=FORBIDDEN, off=(), keys=("bad_words_ids",)),
    Setting("no_repeat_ngram_size", Count(0), default=0, stage=FORBIDDEN, off=0, keys=("no_repeat_ngram_size",)),
    Setting("min_new_tokens", Count(0), default=0, stage=FORBIDDEN, off=0, keys=("min_new_tokens",)),
    Setting("min_length", Count(0), default=0, stage=FORBIDDEN, off=0, keys=("min_length",)),
    Setting(
        "processors",
        Processors(),
        default=(),
        stage=Stage("processors", 40, f"{_PROCESSORS}.custom:Custom", history=True),
        off=(),
    ),
)
"""The settings of all stages."""
