"""Passes through a model's blocks in one call of the CPU library, which writes keys and values where the caches are."""

from __future__ import annotations

import ctypes
import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from core.cpu.arrays import evaluated, known_address
from core.cpu.calls import library
from core.cpu_pass.describe import describe
from core.cpu_pass.description import Basis, Description
from core.cpu_pass.passage import Passage
from core.cpu_pass.sizes import UnsupportedError
from core.kernels.device import cpu_sources, in_inference
from core.nn.key_values import KeyValues
from core.nn.span import Reach
from core.nn.step import StepPlan

_descriptions: dict[int, tuple[weakref.ref[nn.Module], Basis, Description | str]] = {}


def reason(decoder: nn.Module) -> str | None:
    """Why the CPU library does not compute this model's passes; None where it does.

    It follows "because of".
    """
    if not cpu_sources():
        return "no CPU library for the device at hand"
    found = _description(decoder, Basis.holds)
    return found if isinstance(found, str) else None


def hidden_states(
    decoder: nn.Module, tokens: mx.array, plans: Sequence[StepPlan], commit: Callable[[], None]
) -> mx.array | None:
    """The blocks' output before the final norm; None where MLX is to compute it.

    Args:
        tokens: integers; the plans' rows one after the other, each row's tokens in their order.
        plans: of the caches of one step, begun and not yet ended.
        commit: ends the step of the caches.

    Returns:
        float32 ``[tokens, hidden_size]``; zeros for padding.

    Raises:
        BaseException: what a signal's handler has raised during the pass, such as KeyboardInterrupt. The caches hold
            the pass's tokens then.
    """
    description = _usable(decoder, Basis.holds)
    if description is None or not all(_fits(description, plan) for plan in plans) or not evaluated(tokens):
        return None
    passage = Passage(description, plans)
    out = passage.run(tokens.flatten())
    commit()
    if passage.interrupt is not None:
        raise passage.interrupt
    return out


def head(decoder: nn.Module, x: mx.array) -> mx.array | None:
    """Final norm and language head, float32 ``[..., vocab_size]``; None where MLX is to compute it."""
    description = _usable(decoder, Basis.head_holds)
    if description is None or x.dtype != mx.float32 or x.size == 0 or x.shape[-1] != description.model.hidden:
        return None
    if not evaluated(x):
        return None
    rows = x.size // x.shape[-1]
    x = mx.contiguous(x)
    logits = mx.zeros((*x.shape[:-1], description.model.head.rows))
    mx.eval(x, logits)
    numbers, results = ctypes.c_void_p(known_address(x)), ctypes.c_void_p(known_address(logits))
    library().corelm_head(ctypes.byref(description.model), numbers, ctypes.c_int64(rows), results)
    return logits


def _usable(decoder: nn.Module, holds: Callable[[Basis, nn.Module], bool]) -> Description | None:
    if not cpu_sources() or not in_inference():
        return None
    found = _description(decoder, holds)
    return found if isinstance(found, Description) else None


def _description(decoder: nn.Module, holds: Callable[[Basis, nn.Module], bool]) -> Description | str:
    key = id(decoder)
    known = _descriptions.get(key)
    if known is not None and known[0]() is decoder and holds(known[1], decoder):
        return known[2]
    del known
    _descriptions.pop(key, None)  # it keeps arrays that the model has no more
    basis = Basis(decoder)
    found: Description | str
    try:
        found = describe(decoder, basis)
    except UnsupportedError as error:
        found = str(error)
    _descriptions[key] = weakref.ref(decoder, functools.partial(_forget, key, _descriptions)), basis, found
    return found


def _forget(key: int, descriptions: dict[int, Any], _: object) -> None:
    descriptions.pop(key, None)


def _fits(description: Description, plan: StepPlan) -> bool:
    """Whether all caches of a plan keep float32 keys and values, or nothing yet, and show the blocks what they see."""
    reaches: dict[int, Reach] = {}
    for block, layer in zip(plan.blocks, description.layers, strict=True):
        if not isinstance(block, KeyValues) or not {block.spec.dtype, block.dtype} <= {None, mx.float32}:
            return False
        if (block.spec.heads, *block.dims) != (layer.kv_heads, layer.head_dim, layer.head_dim):
            return False
        window = description.windows[layer.view]
        if isinstance(block.reach, int) and (window is None or window > block.reach):
            return False
        if reaches.setdefault(layer.view, block.reach) != block.reach:
            return False
    return True
