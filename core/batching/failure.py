"""Errors that outlive the step they happened in: with their lines as text, not with the frames. Knows no request."""

from __future__ import annotations

import traceback


def kept(error: Exception) -> Exception:
    """The error without tracebacks, which would keep all that their frames held: logits, caches, other rows' tokens.

    What they say is added as a note, which Python prints below the error wherever it is raised again.
    """
    said = "".join(traceback.format_exception(error))
    cause: BaseException | None = error
    while cause is not None:
        cause.__traceback__ = None
        cause = cause.__cause__ or cause.__context__
    error.add_note(f"It came up in a step of a batch:\n{said}")
    return error
