"""What MLX's CUDA backend does otherwise; benchmarks/LOG.md has the measurements."""

from __future__ import annotations

import pytest

from core.device import backend


def skip_figures_of_the_cpu_allocator() -> None:
    """For peaks of memory: CUDA's allocator and streams let temporaries go later."""
    if backend() != "cpu":
        pytest.skip("the figures are those of MLX's CPU allocator")
