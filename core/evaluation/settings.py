"""Checks the settings that say how a text is read, and fills in defaults."""

from __future__ import annotations

from core.errors import UsageError

DEFAULT_CONTEXT = 2048


def check_settings(context: int | None, stride: int | None, max_tokens: int | None) -> None:
    """Refuses values that are wrong for every model; None is a default.

    Raises:
        UsageError: a value is out of range.
    """
    for name, value, least in (("context", context, 2), ("stride", stride, 1), ("max_tokens", max_tokens, 2)):
        if value is not None and value < least:
            raise UsageError(f"{name} is out of range", expected=f"{least} or more", found=value)
    if context is not None and stride is not None and stride > context:
        raise UsageError(
            "the stride is longer than the context, so tokens between the windows would be left out",
            expected=f"at most {context}",
            found=stride,
        )


def complete_settings(limit: int | None, context: int | None, stride: int | None) -> tuple[int, int]:
    """The context and the stride to use; None is replaced by a default.

    Args:
        limit: tokens that the models were made for; None if unknown.
        context, stride: as given.

    Raises:
        UsageError: a value is out of range for these models.
    """
    if context is None:
        context = DEFAULT_CONTEXT if limit is None else min(limit, DEFAULT_CONTEXT)
    elif limit is not None and context > limit:
        raise UsageError(
            "the context is longer than what the model was made for", expected=f"at most {limit}", found=context
        )
    stride = context // 2 if stride is None else stride
    check_settings(context, stride, None)
    return context, stride
