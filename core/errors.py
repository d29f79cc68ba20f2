"""Every error that core raises for a user.

An error says what is wrong, where (file, tensor, key, plugin), what was expected and found, and what to do, in at most
a few lines. It has the same facts as attributes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class CoreError(Exception):
    """Base of all errors raised on purpose.

    Args:
        problem: one sentence, no full stop, that names the tensor, key or plugin concerned.
        where: file or directory (or ``distribution:entry point``) in which the problem lies.
        expected, found: the two sides of a disagreement, printed when given.
        hint: what the user can do about it.
    """

    def __init__(
        self,
        problem: str,
        *,
        where: str | os.PathLike[str] | None = None,
        expected: object = None,
        found: object = None,
        hint: str | None = None,
    ) -> None:
        self.problem = problem
        self.where = None if where is None else os.fspath(where)
        self.expected = expected
        self.found = found
        self.hint = hint
        super().__init__(self._render())

    def _render(self) -> str:
        text = self.problem if self.where is None else f"{self.where}: {self.problem}"
        sides = [
            f"{side} {value}"
            for side, value in (("expected", self.expected), ("found", self.found))
            if value is not None
        ]
        if sides:
            text += f" ({', '.join(sides)})"
        if self.hint:
            text += f"\n  {self.hint}"
        return text

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.__dict__.copy())


def _rebuild(cls: type[CoreError], state: dict[str, object]) -> CoreError:
    """Unpickles an error; its constructor's keywords are not in ``args``."""
    error = cls.__new__(cls)
    error.__dict__.update(state)
    Exception.__init__(error, error._render())
    return error


def first_line(error: BaseException, limit: int = 200) -> str:
    """The first line of a library's error message, cut at ``limit``; the error's class if the message is empty."""
    text = (str(error).strip() or type(error).__name__).partition("\n")[0].rstrip()
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


class UsageError(CoreError):
    """The caller asked for something impossible, whatever the checkpoint (exit code 2 at a command line)."""


class InstallationError(CoreError, ImportError):
    """A package that core needs cannot be imported, or lacks a part."""


class CheckpointError(CoreError):
    """A checkpoint's files are absent, unreadable, damaged or contradict each other."""


class HubError(CheckpointError):
    """The model hub could not be reached, or refused the repository."""


class ConfigError(CoreError):
    """``config.json`` (or a related file) lacks a key, has one of the wrong type, or asks for something not
    implemented."""


class PluginError(CoreError):
    """An architecture plugin is broken, blocked, claimed twice, or breaks the contract."""


class UnknownModelTypeError(PluginError):
    """No installed plugin claims the checkpoint's ``model_type``."""


class WeightsError(CoreError):
    """Checkpoint tensors and model parameters do not fit each other."""


class QuantizationError(WeightsError):
    """The quantization that a checkpoint states is unknown or contradicts its tensors."""


class InsufficientMemoryError(CoreError):
    """The model and its caches do not fit into the device's memory."""


class SaveError(CoreError):
    """A checkpoint cannot be written: the place is taken, the disk is full, or the data differs when read back."""


class TokenizerError(CoreError):
    """A tokenizer file is absent, damaged or of a kind that is not supported."""


class ChatTemplateError(CoreError):
    """A chat template is absent, broken, or refuses the conversation."""


class CacheError(CoreError):
    """A cache cannot do what is asked of it: wrong batch, wrong model, or a rewind past what it still holds."""


class ProcessorError(CoreError):
    """A user's own logits processor failed, or returned something other than logits.

    Attributes:
        row: the row of the batch with that processor.
    """

    def __init__(self, problem: str, *, row: int = 0, expected: object = None, found: object = None) -> None:
        self.row = row
        super().__init__(problem, expected=expected, found=found)


class EvaluationError(CoreError):
    """A text cannot be scored, or two models cannot be compared on it."""


class BenchmarkError(CoreError):
    """Speed cannot be measured: a peer is not installed, or fails, or a chart cannot be written."""


class ConversationError(CoreError):
    """A conversation is malformed, cannot be read or written, or does not fit into the model's context."""


@contextmanager
def refusals(path: Path) -> Iterator[None]:
    """Refusals of the operating system inside this block become errors that name the file and say what to do."""
    try:
        yield
    except OSError as error:
        hint = "Nothing is left of it. Make room or choose another place, and run it again."
        raise SaveError(f"cannot be written: {error.strerror or error}", where=path, hint=hint) from error
