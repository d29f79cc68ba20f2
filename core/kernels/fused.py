"""A kernel's fused source on one device: built once, and used only after it agreed with its reference there."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, NamedTuple

import mlx.core as mx

from core.errors import first_line
from core.kernels.compare import Comparison, compare
from core.kernels.cpu_source import NotNowError
from core.kernels.cuda_code import Instance
from core.kernels.gradient import Function, with_derivatives_of, with_gradient_of
from core.kernels.verification import Verification

if TYPE_CHECKING:
    from core.kernels.device import KernelDevice
    from core.kernels.kernel import Kernel

# A decode step has one shape and prefills have many: forgetting all of them costs one launch computation each.
_MAX_PLANS = 1024


class KernelWarning(UserWarning):
    """A kernel's fused source is not used on this machine because it failed its check; results are the reference's."""


class Launch(NamedTuple):
    """How to launch a source on given inputs.

    ``grid`` counts threads, as in both ``mx.fast.metal_kernel`` and ``mx.fast.cuda_kernel`` (CUDA rounds it up to whole
    blocks, so a CUDA body checks its bounds). The source's output is named ``out``. ``template`` holds compile-time
    constants: each combination is another compilation and another class of shapes, checked on its own.
    """

    grid: tuple[int, int, int]
    threadgroup: tuple[int, int, int]
    output_shape: tuple[int, ...]
    output_dtype: mx.Dtype
    template: tuple[tuple[str, bool | int | mx.Dtype], ...] = ()


class Plan(NamedTuple):
    """What to call for inputs of given shapes and dtypes: without gradient, with it, and the source or nothing.

    ``attempt`` gives None where the source fails to start, instead of the reference, or is not for this call.
    """

    run: Function
    differentiable: Function
    attempt: Callable[..., mx.array | None]


class FusedSource:
    """One kernel on one device."""

    def __init__(self, kernel: Kernel, device: KernelDevice) -> None:
        self.kernel = kernel
        self.device = device
        self.source: object = getattr(kernel, device.language)
        self.usable = self.source is not None
        self._launcher: Callable[..., list[mx.array]] | None = None
        self._plans: dict[Hashable, Plan | None] = {}
        self._verification = Verification(self)
        self._lock = threading.RLock()

    def plan(self, inputs: tuple[mx.array, ...]) -> Plan | None:
        """The plan for these inputs, or None where the reference is to be used; may run the check."""
        if not self.usable:
            return None
        key = tuple([(x.shape, x.dtype) for x in inputs])
        try:
            return self._plans[key]
        except KeyError:
            return self._decide(key, inputs)

    def launch(self, inputs: tuple[mx.array, ...]) -> mx.array:
        """Builds and launches the source, whatever any check said; raises what MLX raises."""
        launch = self.kernel.launch(*inputs)
        if self.device.compiler is not None:
            self.device.compiler.prepare(self.instance(inputs, launch))
        return self._run(inputs, _arguments(launch))

    def begin(self, inputs: tuple[mx.array, ...]) -> None:
        """Starts to compile the source for these inputs in a thread, where we compile it; launches nothing."""
        if self.device.compiler is not None:
            self.device.compiler.begin(self.instance(inputs, self.kernel.launch(*inputs)))

    def claims(self, inputs: tuple[mx.array, ...]) -> bool:
        """Whether the source may be asked: right number of inputs, none empty, and the kernel supports them."""
        kernel = self.kernel
        return len(inputs) == len(kernel.input_names) and all(x.size for x in inputs) and kernel.supports(*inputs)

    def compare(self, inputs: tuple[mx.array, ...]) -> Comparison:
        """Runs source and definition on concrete inputs."""
        actual = self.launch(inputs)
        # Before the reference, and on numbers never seen before (check_key): an output that the source does not write
        # must not find the right numbers in a recycled buffer.
        mx.eval(actual)
        expected = self.kernel.definition(*inputs)
        return compare(actual, expected, self.kernel.tolerance_of(expected.dtype))

    def instance(self, inputs: tuple[mx.array, ...], launch: Launch) -> Instance:
        """The CUDA source as it is compiled for these inputs."""
        kernel = self.kernel
        assert kernel.cuda is not None
        return Instance(
            self._name,
            kernel.input_names,
            ("out",),
            kernel.cuda,
            kernel.header,
            tuple((x.dtype, x.ndim > 0) for x in inputs),
            (launch.output_dtype,),
            launch.template,
        )

    @property
    def _name(self) -> str:
        return self.kernel.name.replace(".", "_")

    def _run(self, inputs: tuple[mx.array, ...], arguments: dict[str, Any]) -> mx.array:
        if self._launcher is None:
            more: dict[str, Any] = {"header": self.kernel.header} if self.kernel.header else {}
            if self.kernel.in_place:
                more["ensure_row_contiguous"] = False
            if self.kernel.shared_memory and self.device.language == "cuda":
                more["shared_memory"] = self.kernel.shared_memory
            self._launcher = self.device.build(
                name=self._name,
                input_names=list(self.kernel.input_names),
                output_names=["out"],
                source=self.source,
                **more,
            )
        return self._launcher(inputs=list(inputs), **arguments)[0]

    def _decide(self, key: Hashable, inputs: tuple[mx.array, ...]) -> Plan | None:
        plan: Plan | None = None
        problem: str | None = None
        with self._lock:
            if not self.usable:
                return None
            try:
                if self.claims(inputs):
                    launch = self.kernel.launch(*inputs)
                    problem = self._verification.problem(inputs, launch)
                    plan = self._make_plan(launch)
            except Exception as error:  # building, compiling or launching: whatever it is, the reference still works
                problem = f"fails with {type(error).__name__}: {first_line(error)}"
            if problem is None:
                if len(self._plans) >= _MAX_PLANS:
                    self._plans.clear()
                self._plans[key] = plan
                return plan
            if self.device.ahead:
                return None  # nothing was run that could be wrong
            self._switch_off()  # before another thread gets the lock
        self._warn(problem)
        return None

    def _make_plan(self, launch: Launch) -> Plan:
        reference, arguments = self.kernel.reference, _arguments(launch)

        def attempt(*inputs: mx.array) -> mx.array | None:
            try:
                return self._run(inputs, arguments)
            except NotNowError:
                pass
            except Exception as error:
                if self._switch_off():
                    self._warn(f"cannot be launched: {type(error).__name__}: {first_line(error)}")
            return None

        def run(*inputs: mx.array) -> mx.array:
            result = attempt(*inputs)
            return reference(*inputs) if result is None else result

        # A source on the CPU gives numbers, not a node of MLX's graph that refuses what it has no derivative for.
        differentiable = with_derivatives_of if self.device.language == "cpu" else with_gradient_of
        return Plan(run, differentiable(reference, run), attempt)

    def _switch_off(self) -> bool:
        """Falls back for good: a source that is wrong once on a machine is not trusted there with other shapes.

        False when that was done before.
        """
        with self._lock:
            was_usable, self.usable = self.usable, False
            self._plans.clear()
            return was_usable

    def _warn(self, problem: str) -> None:
        warnings.warn(
            f"kernel {self.kernel.name!r} ({self.kernel.origin.module}) is off on {self.device.name}: its "
            f"{self.device.language} source {problem}. The reference is used instead: right, and slower. "
            "`python -m core doctor --kernels` shows more; CORE_KERNELS=reference skips all fused sources.",
            KernelWarning,
            stacklevel=2,
        )


def _arguments(launch: Launch) -> dict[str, Any]:
    return {
        "output_shapes": [launch.output_shape],
        "output_dtypes": [launch.output_dtype],
        "grid": launch.grid,
        "threadgroup": launch.threadgroup,
        "template": list(launch.template) or None,
    }
