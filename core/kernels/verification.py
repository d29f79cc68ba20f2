"""Compares a fused source with its reference before its first use, and remembers on disk that they agreed."""

from __future__ import annotations

import itertools
from collections.abc import Hashable
from typing import TYPE_CHECKING

import mlx.core as mx

from core.kernels.compare import dtype_name
from core.kernels.cuda_code import digest
from core.kernels.fingerprint import fingerprint
from core.version import __version__

if TYPE_CHECKING:
    from core.kernels.fused import FusedSource, Launch

# MLX passes arrays of fewer elements to Metal in another address space, which is another source.
_METAL_CONSTANT_SIZE = 8
_FLOATS = (mx.float32, mx.float16, mx.bfloat16)
_seeds = itertools.count(0)


def check_key() -> mx.array:
    """A random key for one check, another one each time; ``mx.random.state`` is left alone."""
    return mx.random.key(next(_seeds))


class Verification:
    """What is known of one source: the classes of shapes in which it agreed with its reference."""

    def __init__(self, source: FusedSource) -> None:
        self._source = source
        self._verified: set[Hashable] = set()

    def problem(self, inputs: tuple[mx.array, ...], launch: Launch) -> str | None:
        """Compares with the reference, once for each class of shapes; says what is wrong, if anything.

        Where the compiled code is kept on disk, so is the fact that it has passed: the next process need not compare.
        The check makes arrays of its own from a random key of its own. MLX evaluates such arrays at any time, even
        while ``mx.compile``, ``mx.grad`` or ``mx.vmap`` trace the call that asked for it.
        """
        source, compiler = self._source, self._source.device.compiler
        shape_class = self._shape_class(inputs, launch)
        if shape_class in self._verified:
            return None
        if source.device.ahead:
            source.begin(inputs)
            self._verified.add(shape_class)
            return None
        code = None if compiler is None else compiler.prepare(source.instance(inputs, launch))
        name = None if code is None else self._name(code, shape_class)
        if compiler is not None and name is not None and compiler.store.passed(name):
            self._verified.add(shape_class)
            return None
        for sample in self._samples(inputs, shape_class):
            comparison = source.compare(sample)
            if not comparison.ok:
                shapes = ", ".join(f"{dtype_name(x.dtype)} {list(x.shape)}" for x in sample)
                return f"{comparison.problem} on {shapes}"
        self._verified.add(shape_class)
        if compiler is not None and name is not None:
            compiler.store.note_passed(name)
        return None

    def _name(self, code: str, shape_class: Hashable) -> str:
        """Names a check: the compiled code, and all that decides what it is compared with, and how closely."""
        kernel = self._source.kernel
        functions = [fingerprint(f) for f in (kernel.definition, kernel.sample_inputs, kernel.launch)]
        around = fingerprint(kernel.origin.code)  # with what those call, where it is defined beside them
        tolerance = sorted(kernel.tolerance.items(), key=str)
        return digest("check", __version__, code, kernel.name, *functions, around, tolerance, shape_class)

    def _shape_class(self, inputs: tuple[mx.array, ...], launch: Launch) -> Hashable:
        """Equal for inputs that run the same compiled code."""
        constant = _METAL_CONSTANT_SIZE if self._source.device.language == "metal" else 0
        return launch.template, tuple((x.dtype, x.ndim == 0, x.size < constant) for x in inputs)

    def _samples(self, inputs: tuple[mx.array, ...], shape_class: Hashable) -> list[tuple[mx.array, ...]]:
        source, kernel = self._source, self._source.kernel
        key = check_key()
        dtype = next((x.dtype for x in inputs if x.dtype in _FLOATS), inputs[0].dtype)
        samples = [
            sample
            for sample in kernel.sample_inputs(key, dtype)
            if source.claims(sample) and self._shape_class(sample, kernel.launch(*sample)) == shape_class
        ]
        if samples:
            return samples
        # The kernel's author did not think of this class: use the shapes of the call itself.
        if not all(x.dtype in _FLOATS for x in inputs):
            raise LookupError("sample_inputs has no sample of this class of shapes, and integers cannot be made up")
        keys = mx.random.split(key, len(inputs))
        return [tuple(mx.random.normal(x.shape, key=k).astype(x.dtype) for x, k in zip(inputs, keys, strict=True))]
