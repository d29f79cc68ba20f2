"""Starts to compile the kernels of a model while its weights are read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx
import mlx.nn as nn

from core.kernels import inference
from core.kernels.ahead import compiling_ahead
from core.kernels.cuda_code import digest
from core.kernels.device import current_device
from core.nn import Decoder
from core.version import __version__
from core.weights import Plan
from core.weights.tree import replace

_PROMPTS = (64, 512)
"""Tokens of the prompts to compile for: up to 64 tokens, and more, are different kernels."""


def compile_ahead(model: nn.Module, plan: Plan) -> None:
    """Compiles, in threads, the kernels that a prompt and a decode step of this model will need.

    The model's parameters are replaced by unevaluated zeros, so call this before the parameters are read. Nothing is
    done where MLX compiles the kernels itself, or where this model's kernels are on disk.

    It raises no error: kernels that are not compiled now are compiled at their first use. The compiler's ``failures``
    list what went wrong.
    """
    device = current_device()
    if device is None or device.compiler is None or not isinstance(model, Decoder):
        return
    device.compiler.locate()
    store = device.compiler.store
    done = digest("ahead", __version__, [(entry.parameter, entry.shape, entry.dtype) for entry in plan.entries])
    if store.passed(done):
        return
    for entry in plan.entries:
        replace(model, entry.parameter, mx.zeros(entry.shape, entry.dtype))
    try:
        with _unchanged(model):
            for tokens in _PROMPTS:
                # MLX refuses to evaluate anything while it traces, so no block can evaluate the zeros.
                mx.compile(lambda ids: _pass(model, ids))(mx.zeros((1, tokens), mx.int32))
            _compile_step(model)
    except Exception as error:  # such as a plugin's block that reads values, which it may do
        device.compiler.failures["ahead of use"] = f"{type(error).__name__}: {error}"
        return
    store.note_passed(done)


def cancel_ahead() -> None:
    """Drops what ``compile_ahead`` has queued, after a load has failed."""
    device = current_device()
    if device is not None and device.compiler is not None:
        device.compiler.cancel()


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Restores what modules have stored about a call inside this block: it was computed from zeros, or not at all."""
    before = [(module, dict(module), dict(vars(module))) for module in model.modules()]
    try:
        yield
    finally:
        for module, items, attributes in before:
            module.clear()
            dict.update(module, items)
            vars(module).clear()
            vars(module).update(attributes)


def _pass(model: Decoder, ids: mx.array) -> mx.array:
    cache = model.make_cache()
    with compiling_ahead(), inference():
        prompt = model.head(model.hidden_states(ids, cache)[:, -1:])
        step = model.head(model.hidden_states(ids[:, :1].astype(mx.uint32), cache))
    return prompt + step


def _compile_step(model: Decoder) -> None:
    try:
        from core.fast import compile_step
    except ImportError:  # core/fast can be deleted
        return
    compile_step(model)
