"""Starts to compile kernels before they are needed: in a pass over a model that runs none of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import mlx.core as mx

from core.kernels.device import KernelDevice, current_device, use_device


@contextmanager
def compiling_ahead() -> Iterator[None]:
    """Kernels called inside begin to be compiled in threads, for inputs of these shapes, and give zeros.

    Where MLX compiles the kernels, nothing is different inside.
    """
    device = current_device()
    if device is None or device.compiler is None:
        yield
        return
    with use_device(_twin(device)):
        yield


@functools.cache
def _twin(device: KernelDevice) -> KernelDevice:
    return replace(device, build=_build, ahead=True)


def _build(**_description: Any) -> Callable[..., list[mx.array]]:
    def launch(
        *, output_shapes: Sequence[Sequence[int]], output_dtypes: Sequence[mx.Dtype], **_arguments: Any
    ) -> list[mx.array]:
        return [mx.zeros(shape, dtype) for shape, dtype in zip(output_shapes, output_dtypes, strict=True)]

    return launch
