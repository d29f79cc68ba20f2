"""A process whose table has one sampler more; prints, as JSON, what the users of the table make of it."""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from core.sampling import table
from core.sampling.kinds import Number
from core.sampling.setting import Flag, Setting, Stage

ENTRY = Setting(
    "logit_cap",
    Number("1 to 100", lambda x: 1 <= x <= 100),
    default=100.0,
    stage=Stage("logit_cap", 65, "tests.generation.made_up_sampler:LogitCap"),
    off=100.0,
    flag=Flag("CAP", "choose among logits up to CAP"),
    keys=("cap_of_logits", "logit_cap"),
)


class LogitCap:
    """Hides logits above the cap."""

    def __init__(self, settings: Sequence[Any], vocab_size: int) -> None:
        self._caps = [row.logit_cap if row.uses("logit_cap") else math.inf for row in settings]

    def __call__(self, scores: Any, now: Any) -> None:
        from core.generation.processors.scores import column

        scores.hide(scores.logits > column(self._caps))


def main() -> None:
    """Adds the entry before anything has read the table."""
    table.SAMPLERS = (*table.SAMPLERS, ENTRY)
    import mlx.core as mx

    import core
    from core.cli.program import main as corelm
    from core.errors import CoreError
    from core.generation import Chooser, checkpoint_settings, sampling_from, unread_generation_keys

    def error(function: Callable[..., Any], *args: Any) -> str:
        try:
            function(*args)
        except CoreError as found:
            return str(found)
        return "none"

    chooser = Chooser(3)
    for options in ({}, {"logit_cap": 5.0}):
        chooser.join(sampling_from(options), [1])
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        corelm(["generate", "--help"])
    found = {
        "default": core.Sampling().logit_cap,
        "in signatures": str(inspect.signature(core.LanguageModel.stream).parameters["logit_cap"].annotation),
        "order": core.Sampling().order,
        "out of range": error(sampling_from, {"logit_cap": 101}),
        "left out of the order": error(sampling_from, {"logit_cap": 5, "order": []}),
        "chosen": chooser.choose(mx.array([[4.0, 6.0, 3.0]] * 2), [1, 1]).ids.tolist(),
        "read": [checkpoint_settings({key: 7}) for key in ENTRY.keys],
        "read out of range": error(checkpoint_settings, {"cap_of_logits": 0}),
        "unread": unread_generation_keys(dict.fromkeys(ENTRY.keys, 7)),
        "help": text.getvalue(),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
