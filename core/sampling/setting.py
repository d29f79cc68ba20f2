"""What the table says of a setting: its values, its stage, its flag on the command line, its keys in a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from core.sampling.kinds import Kind


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of what is done to logits.

    Attributes:
        name: as ``Sampling.order`` has it.
        place: in the default order; smaller places come first.
        processor: the class that does it, ``module:name``, imported when it is first used. None: the pipeline itself
            makes it, before every order, and no order names it.
        draws: it counts only where tokens are drawn, not at temperature 0.
        probabilities: it looks at probabilities, which depend on the temperature.
        history: it looks back on the tokens so far.
    """

    name: str
    place: int
    processor: str | None = None
    draws: bool = False
    probabilities: bool = False
    history: bool = False


@dataclass(frozen=True, slots=True)
class Flag:
    """An option of the command line; its name is the setting's.

    Attributes:
        metavar: stands for the value in the help.
        help: the help text.
        short: the short form, for instance ``-t``.
    """

    metavar: str
    help: str
    short: str | None = None


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting.

    Attributes:
        name: the field of ``Sampling``, and the keyword argument.
        kind: type and range.
        default: the value where nobody gives one.
        stage: what the setting belongs to; None for those of the whole request.
        off: the value with which the setting asks nothing of its stage. None: the setting only says how the stage
            works, not whether it does.
        flag: on the command line; None: there is none.
        keys: of ``generation_config.json``; the first that is not null counts.
    """

    name: str
    kind: Kind
    default: Any
    stage: Stage | None = None
    off: Any = None
    flag: Flag | None = None
    keys: tuple[str, ...] = ()

    def asks(self, value: Any) -> bool:
        """Whether the stage has something to do for this value."""
        if self.off is None:
            return False
        return bool(value != self.off if self.off else value)
