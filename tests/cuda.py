"""What MLX's CUDA backend does otherwise; benchmarks/LOG.md has the measurements."""

from __future__ import annotations

import pytest

from core.device import backend


def skip_rows_of_one_group() -> None:
    """For tiny models whose quantized rows are one group long."""
    if backend() == "cuda":
        pytest.skip("MLX 0.32.4 on CUDA multiplies wrongly where a whole row is one group, as in this tiny model")


def skip_figures_of_the_cpu_allocator() -> None:
    """For peaks of memory: CUDA's allocator and streams let temporaries go later."""
    if backend() != "cpu":
        pytest.skip("the figures are those of MLX's CPU allocator")
