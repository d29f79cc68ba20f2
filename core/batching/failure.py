"""Makes errors safe to keep: the traceback becomes text, so that its frames are freed."""

from __future__ import annotations

import traceback


def kept(error: Exception) -> Exception:
    """Returns the error without tracebacks, which would keep the frames' arrays alive: logits, caches, other rows'
    tokens.

    The text of the traceback is added as a note. Python prints it below the error wherever that is raised again.
    """
    said = "".join(traceback.format_exception(error))
    cause: BaseException | None = error
    while cause is not None:
        cause.__traceback__ = None
        cause = cause.__cause__ or cause.__context__
    error.add_note(f"It was raised in a step of a batch:\n{said}")
    return error
