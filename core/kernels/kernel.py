"""The Kernel: a name, a reference in plain MLX operations, and sources that may replace it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence

import mlx.core as mx

from core.kernels.compare import DEFAULT_TOLERANCE, EXACT, Tolerance
from core.kernels.device import KernelDevice, current_device, in_inference
from core.kernels.fused import FusedSource, Launch, Plan
from core.kernels.gradient import Function
from core.kernels.registry import Origin, register


class Kernel:
    """A function of arrays that may be computed by a fused Metal or CUDA source, or by the CPU library.

    Calling it uses the source for the device at hand, and its reference where there is no source, where ``supports``
    says no, and where the source once disagreed with the reference on this machine. The first use of a source compares
    the two on random input, once per process, dtype and class of shapes (shapes that run the same compiled code); a
    wrong number, a NaN or an error switches the source off for the rest of the process, with one ``KernelWarning``.

    Gradients (``mx.grad``, ``mx.vjp``) are the reference's, of every order; inside ``inference()`` there are none.
    ``mx.vmap`` and ``mx.jvp`` work wherever the reference is used, so inside ``reference_only()`` everywhere; MLX
    refuses to batch or push forward a fused source, and to compile one with ``shapeless=True``. A source on the CPU
    computes at once, and so waits for its inputs; where MLX only traces (``mx.compile``, ``mx.vmap``), the reference
    is traced in its place.

    Constructing a kernel registers it.

    Args:
        name: unique in the process; a plugin's kernels are named ``plugin.kernel``.
        reference: the definition, of arrays to one array; its parameters name the source's inputs.
        launch: how to launch a source on these inputs; reads shapes and dtypes only.
        sample_inputs: random inputs from ``(key, dtype)``, in several shapes (odd sizes, one row, every template);
            must use the key given, and leave ``mx.random.state`` alone.
        metal, cuda: bodies for ``mx.fast.metal_kernel`` and ``mx.fast.cuda_kernel``, which write ``out``.
        cpu: a function of the same evaluated arrays that computes the result at once, through the CPU library; None
            from it leaves one call to the reference.
        header: text before the body: includes, and functions that it calls.
        shared_memory: bytes of dynamic shared memory that a block of the CUDA source takes.
        in_place: the source takes inputs where they lie, with whatever strides they have, and may write them; called by
            ``launched``.
        tolerance: allowed error for each dtype of the output; one that it does not list has the default of
            ``core.kernels.compare``, and an integer none at all.
        supports: whether the sources take these inputs; reads shapes and dtypes only. Empty arrays never reach it.
        definition: what a check compares with, where that is not the reference: the same function for small inputs,
            of operations that start at once.

    Raises:
        PluginError: another kernel has this name.
    """

    def __init__(
        self,
        name: str,
        reference: Function,
        *,
        launch: Callable[..., Launch],
        sample_inputs: Callable[[mx.array, mx.Dtype], Sequence[tuple[mx.array, ...]]],
        metal: str | None = None,
        cuda: str | None = None,
        cpu: Callable[..., mx.array | None] | None = None,
        header: str = "",
        shared_memory: int = 0,
        in_place: bool = False,
        tolerance: Mapping[mx.Dtype, Tolerance] | None = None,
        supports: Callable[..., bool] | None = None,
        definition: Function | None = None,
    ) -> None:
        self.name = name
        self.reference = reference
        self.launch = launch
        self.sample_inputs = sample_inputs
        self.metal = metal
        self.cuda = cuda
        self.cpu = cpu
        self.header = header
        self.shared_memory = shared_memory
        self.in_place = in_place
        self.tolerance = {**DEFAULT_TOLERANCE, **(tolerance or {})}
        self.supports = supports or _supports_all
        self.definition = reference if definition is None else definition
        self.input_names = tuple(inspect.signature(reference).parameters)
        self.origin = Origin.of_caller(1)
        self._fused: dict[KernelDevice, FusedSource] = {}
        register(self)

    def __call__(self, *inputs: mx.array) -> mx.array:
        device = current_device()
        if device is None or (plan := self._plan(device, inputs)) is None:
            return self.reference(*inputs)
        return plan.run(*inputs) if in_inference() else plan.differentiable(*inputs)

    def launched(self, *inputs: mx.array) -> mx.array | None:
        """What the fused source makes of these inputs, without gradient; None where it does not run, or fails to.

        For sources that write in place, whose reference would leave that undone.
        """
        device = current_device()
        if device is None or (plan := self._plan(device, inputs)) is None:
            return None
        return plan.attempt(*inputs)

    def fused(self, *inputs: mx.array) -> mx.array | None:
        """A call, where a fused source takes these inputs; None where the reference would be used."""
        device = current_device()
        if device is None or (plan := self._plan(device, inputs)) is None:
            return None
        return plan.run(*inputs) if in_inference() else plan.differentiable(*inputs)

    def takes(self, *inputs: mx.array) -> bool:
        """Whether a fused source would run on these inputs, here; may run its check."""
        device = current_device()
        return device is not None and self._plan(device, inputs) is not None

    def tolerance_of(self, dtype: mx.Dtype) -> Tolerance:
        """The error allowed in an output of this dtype."""
        return self.tolerance.get(dtype, EXACT)

    def __repr__(self) -> str:
        sources = [language for language in ("metal", "cuda", "cpu") if getattr(self, language) is not None]
        return f"Kernel({self.name!r}, sources: {', '.join(sources) or 'none'}, from {self.origin.module})"

    def _plan(self, device: KernelDevice, inputs: tuple[mx.array, ...]) -> Plan | None:
        fused = self._fused.get(device)
        if fused is None:
            fused = self._fused.setdefault(device, FusedSource(self, device))
        return fused.plan(inputs)


def _supports_all(*_inputs: mx.array) -> bool:
    return True
