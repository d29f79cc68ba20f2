"""The gradient of a fused source, which is that of its reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import mlx.core as mx

Function = Callable[..., mx.array]


def with_gradient_of(reference: Function, run: Function) -> Function:
    """``run`` with the derivatives of ``reference``: MLX knows none for a source.

    ``mx.vmap`` and ``mx.jvp`` reach the source itself, and MLX refuses it there by name: use ``reference_only()``.
    """
    function = mx.custom_function(run)

    @function.vjp
    def vjp(primals: Any, cotangent: mx.array, _output: mx.array) -> list[mx.array]:
        primals = _as_list(primals)
        of_floats, positions = _restrict(reference, primals)
        gradients = [mx.zeros_like(x) for x in primals]
        for position, gradient in zip(
            positions, mx.vjp(of_floats, [primals[p] for p in positions], [cotangent])[1], strict=True
        ):
            gradients[position] = gradient
        return gradients

    return cast(Function, function)


def with_derivatives_of(reference: Function, run: Function) -> Function:
    """As ``with_gradient_of``, and for ``mx.jvp`` too: for a source whose result MLX takes for a constant."""
    function = with_gradient_of(reference, run)

    @function.jvp  # type: ignore[attr-defined, untyped-decorator]  # it is a mx.custom_function
    def jvp(primals: Any, tangents: Any) -> mx.array:
        primals, tangents = _as_list(primals), _as_list(tangents)
        of_floats, positions = _restrict(reference, primals, [tangent is not None for tangent in tangents])
        return mx.jvp(of_floats, [primals[p] for p in positions], [tangents[p] for p in positions])[1][0]

    return function


def _restrict(
    reference: Function, inputs: list[mx.array], wanted: list[bool] | None = None
) -> tuple[Function, list[int]]:
    """The reference as a function of its floating inputs, and their positions: MLX refuses derivatives by integers."""
    positions = [
        i for i, x in enumerate(inputs) if mx.issubdtype(x.dtype, mx.floating) and (wanted is None or wanted[i])
    ]

    def of_floats(*floats: mx.array) -> mx.array:
        merged = list(inputs)
        for position, value in zip(positions, floats, strict=True):
            merged[position] = value
        return reference(*merged)

    return of_floats, positions


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (tuple, list)) else [value]
