"""Runs a kernel's CPU source: a Python function of arrays that lie evaluated in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx


class NotNowError(Exception):
    """The source does not compute this call, and nothing is wrong with it: the reference is to be used."""


def build(*, source: Callable[..., mx.array | None], **_description: Any) -> Callable[..., list[mx.array]]:
    """What ``mx.fast.metal_kernel`` is for Metal: makes of a source what launches it.

    What is returned raises ``NotNowError`` where its inputs have no numbers, because MLX traces the call
    (``mx.compile``, ``mx.vmap``), and where the source returns None.
    """

    def launch(*, inputs: list[mx.array], **_arguments: Any) -> list[mx.array]:
        try:
            mx.eval(inputs)
        except (RuntimeError, ValueError) as error:  # or the inputs cannot be computed at all, as the caller will see
            raise NotNowError(str(error)) from error
        result = source(*inputs)
        if result is None:
            raise NotNowError
        return [result]

    return launch
