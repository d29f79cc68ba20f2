"""When a model and a cache get a fast step, and the check that a kernel must pass first.

The first use of a kernel for a model compares it with the ordinary path, on a short sequence of its own; a mismatch or
an error means the ordinary path, with one warning. Where compiled code is kept on disk, so is the fact that it has
passed for a model of the same classes.
"""

from __future__ import annotations

import warnings
import weakref
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from core.errors import first_line
from core.fast.describe import Description, Unsupported, describe
from core.fast.layout import problem
from core.fast.shape import StepShape
from core.fast.step import FastStep, step_instance
from core.kernels import KernelWarning
from core.kernels.cuda_code import digest
from core.kernels.device import current_device, multiprocessors
from core.kernels.fingerprint import fingerprint
from core.nn import Cache, Decoder
from core.version import __version__

_TOLERANCE = 0.05  # of the logits' norm: bfloat16 steps through many layers differ by a hundredth
_CHECK_TOKENS = 21
_verdicts: dict[tuple[int, StepShape], tuple[weakref.ref[Decoder], bool]] = {}


def fast_step(model: object, cache: Cache) -> FastStep | None:
    """A fast step for this model that continues this cache, or None where the ordinary path is to be used.

    Args:
        cache: holds at least one token, written by the ordinary path just now.
    """
    if reason(model, cache) is not None:
        return None
    assert isinstance(model, Decoder)
    description = describe(model, cache)
    if not _agrees(model, description):
        return None
    return FastStep(description, cache, multiprocessors())


def compile_step(model: Decoder) -> None:
    """Starts to compile the step that one sequence will need, in a thread; the weights need not be there yet."""
    device = current_device()
    if device_reason() is not None or device is None or device.compiler is None:
        return
    try:
        description = describe(model, model.make_cache())
    except Unsupported:
        return
    if problem(description.shape, multiprocessors()) is None:
        device.compiler.begin(step_instance(description, multiprocessors()))


def reason(model: object, cache: Cache) -> str | None:
    """Why there is no fast step for this model and cache on the device at hand; None where there is one.

    It follows "because of".
    """
    unfit = device_reason()
    if unfit is not None:
        return unfit
    if any(not block.arrays() for block in cache.blocks):
        return "an empty cache"
    if any(array.dtype != mx.bfloat16 for array in cache.arrays()):
        return "a cache in another type than bfloat16"
    try:
        shape = describe(model, cache).shape
    except Unsupported as unsupported:
        return str(unsupported)
    return problem(shape, multiprocessors())


def device_reason() -> str | None:
    """Why the device at hand has no fast step, whatever the model."""
    device = current_device()
    if device is None or device.language != "cuda" or device.build is not mx.fast.cuda_kernel:
        return "no CUDA device"
    if device.capability != 9:
        return "a device that is not of compute capability 9"
    if multiprocessors() == 0:
        return "an unknown number of multiprocessors"
    return None


def _agrees(model: Decoder, description: Description) -> bool:
    key = id(model), description.shape
    known = _verdicts.get(key)
    if known is not None and known[0]() is model:
        return known[1]
    device = current_device()
    compiler = None if device is None else device.compiler
    code = None if compiler is None else compiler.prepare(step_instance(description, multiprocessors()))
    passed = None if code is None else digest("step", __version__, code, _classes(model))
    if compiler is not None and passed is not None and compiler.store.passed(passed):
        _verdicts[key] = weakref.ref(model), True
        return True
    found = None
    try:
        error = _error(model, description.shape.batch)
        if not error <= _TOLERANCE:
            found = f"differs from the ordinary path by {error:.3g} of the logits' norm"
    except Exception as failure:  # building, compiling or launching: whatever it is, the ordinary path still works
        found = f"fails with {type(failure).__name__}: {first_line(failure)}"
    _verdicts[key] = weakref.ref(model), found is None
    if compiler is not None and passed is not None and found is None:
        compiler.store.note_passed(passed)
    if found is not None:
        warnings.warn(
            f"the fast decode step is off for this model: it {found}. The ordinary path is used instead: right, and "
            "slower. CORE_KERNELS=reference skips all fused sources.",
            KernelWarning,
            stacklevel=4,
        )
    return found is None


def _classes(model: nn.Module) -> list[str]:
    """What decides how a model is described and what it computes, besides its shape: its classes, and this package."""
    found = []
    for cls in {cls for module in model.modules() for cls in type(module).__mro__ if issubclass(cls, nn.Module)}:
        functions = [value for value in vars(cls).values() if hasattr(value, "__code__")]
        found.append(f"{cls.__module__}.{cls.__qualname__} {digest(*map(fingerprint, functions))}")
    for file in Path(__file__).parent.glob("*.py"):
        state = file.stat()
        found.append(f"{file.name} {state.st_size} {state.st_mtime_ns}")
    return sorted(found)


def _error(model: Decoder, batch: int) -> float:
    """How far two steps are from the ordinary path's, relative to the norm of the logits."""
    vocabulary = model.vocab_size
    ids = mx.array([[(7919 * (i + 1) * (b + 3)) % vocabulary for i in range(_CHECK_TOKENS)] for b in range(batch)])
    cache = model.make_cache(batch)
    for i in range(_CHECK_TOKENS - 2):  # one by one: MLX compiles products of several rows for half a minute
        mx.eval(model.hidden_states(ids[:, i : i + 1], cache), cache.arrays())
    twin = cache.copy()
    expected = mx.concatenate([model(ids[:, i : i + 1], twin) for i in (_CHECK_TOKENS - 2, _CHECK_TOKENS - 1)], axis=1)
    expected = expected.astype(mx.float32)
    mx.eval(expected)
    step = FastStep(describe(model, cache), cache, multiprocessors())
    try:
        actual = mx.stack([step(mx.contiguous(ids[:, -2])), step(mx.contiguous(ids[:, -1]))], axis=1).astype(mx.float32)
        error = mx.linalg.norm(actual - expected) / mx.linalg.norm(expected)
        return float(error.item())  # type: ignore[arg-type]
    finally:
        step.close()
