"""The CUDA programs of core's kernels and of small models' decode steps, and one text of many of them."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from core.fast.describe import describe
from core.fast.layout import problem
from core.fast.step import step_instance
from core.kernels import Kernel, decode_attention
from core.kernels.cuda_code import Instance
from core.kernels.device import KernelDevice, use_device
from core.kernels.fused import FusedSource
from core.kernels.registry import registered_kernels
from tests.fast.models import build

DTYPES = (mx.float32, mx.float16, mx.bfloat16)
HOPPER = 9
# Compute capability (major) of each architecture that programs are compiled for.
ARCHITECTURES = {"sm_80": 8, "sm_90a": HOPPER, "sm_100": 10, "sm_120": 12}
_BLOCKS = 132  # multiprocessors, an H100's
_GROUPS = (1, 2, 4, 8)  # query heads that share a key/value head

# Batch, bits and config of the decode steps: each choice of its text at least once.
STEPS: tuple[tuple[int, int, dict[str, Any]], ...] = (
    (1, 4, {}),
    (1, 8, {}),
    (1, 16, {}),
    (2, 4, {"sliding_window": None}),
    (4, 16, {"head_dim": 128, "num_attention_heads": 16}),
    (1, 8, {"sliding_window": None, "tie_word_embeddings": True}),
    (1, 4, {"intermediate_size": 1536, "vocab_size": 2016, "head_dim": 128, "num_key_value_heads": 8}),
    (1, 4, {"model_type": "mixtral"}),
    (1, 16, {"model_type": "mixtral", "sliding_window": None}),
)


@dataclass(frozen=True)
class Program:
    """A program that is compiled.

    Attributes:
        kernel: the kernel's name in its registry.
        capabilities: of the devices that run it: compute capability, major.
    """

    kernel: str
    instance: Instance
    capabilities: frozenset[int]

    @property
    def source(self) -> str:
        """The kernel's name without its numbers: ``few_rows_parts`` for ``few_rows_8_4_1_parts``."""
        return re.sub(r"_\d+", "", self.kernel)


def core_kernels() -> dict[str, Kernel]:
    """The kernels with a CUDA source that core defines, by name."""
    made = [
        decode_attention._kernel(head_dim, group, in_parts)
        for head_dim, group, in_parts in itertools.product((64, 128), _GROUPS, (False, True))
    ]
    kernels = {kernel.name: kernel for kernel in (*registered_kernels().values(), *made)}
    return {
        name: kernel
        for name, kernel in sorted(kernels.items())
        if kernel.cuda is not None and kernel.origin.module.startswith("core.")
    }


@functools.cache
def programs() -> tuple[Program, ...]:
    """Each program once: what the samples of core's kernels compile, on any device, and the decode steps."""
    found: dict[tuple[str, Instance], set[int]] = {}
    for capability in sorted({*ARCHITECTURES.values()}):
        for key in _of_samples(capability):
            found.setdefault(key, set()).add(capability)
    for batch, bits, changes in STEPS:
        step = _of_step(batch, bits, changes)
        found[step.name, step] = {HOPPER}
    return tuple(Program(*key, frozenset(capabilities)) for key, capabilities in found.items())


def _of_samples(capability: int) -> Iterable[tuple[str, Instance]]:
    device = KernelDevice("no device", "cuda", lambda **_: None, capability)
    with use_device(device):
        for kernel in core_kernels().values():
            fused = FusedSource(kernel, device)
            for dtype in DTYPES:
                for sample in kernel.sample_inputs(mx.random.key(0), dtype):
                    if fused.claims(sample):
                        yield kernel.name, fused.instance(sample, kernel.launch(*sample))


def _of_step(batch: int, bits: int, changes: dict[str, Any]) -> Instance:
    model = build(bits=bits, **changes)
    description = describe(model, model.make_cache(batch))
    assert problem(description.shape, _BLOCKS) is None
    return step_instance(description, _BLOCKS)


def one_text(chosen: Sequence[Program]) -> str:
    """The programs as one: each in a namespace of its own, behind the headers of all.

    So the names of a program clash neither with another's nor with those of the host's headers, which only nvcc reads.
    """
    headers: dict[str, None] = {}
    parts = []
    for number, program in enumerate(chosen):
        lines = program.instance.text.splitlines()
        headers |= dict.fromkeys(line for line in lines if line.startswith("#include"))
        rest = "\n".join("" if line.startswith("#include") else line for line in lines)
        parts.append(f'namespace program_{number} {{\n#line 1 "{program.kernel}"\n{rest}\n}}\n')
    return "\n".join([*headers, *parts])


def symbol(number: int, program: Program) -> str:
    """Part of the name that the program's kernel has in what ``one_text`` compiles to."""
    space, function = f"program_{number}", program.instance.function
    return f"{len(space)}{space}3mlx4core2cu{len(function)}{function}"
