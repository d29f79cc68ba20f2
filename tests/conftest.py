"""Settings for all tests."""

import os

# Comparisons with a float32 reference need float32 products; MLX's CUDA backend rounds them to TF32 unless told not to.
os.environ.setdefault("MLX_ENABLE_TF32", "0")
# Workers of pytest-xdist share the cores: threads of one that wait for another's would take longer than one alone.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import mlx.core as mx
import pytest
from hypothesis import settings

# Timing is never a test's result; in CI the examples are the same in every run, so that a failure can be repeated.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")

_HAS_CUDA = mx.cuda.is_available() and mx.default_device().type == mx.gpu


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A quarter of the examples on CUDA, where each new shape costs a compilation or a plan."""
    if not _HAS_CUDA:
        return
    functions = {getattr(item, "obj", None) for item in items}
    for test in {getattr(function, "__func__", function) for function in functions}:
        chosen = getattr(test, "_hypothesis_internal_use_settings", None)
        if chosen is not None:
            test._hypothesis_internal_use_settings = settings(chosen, max_examples=max(5, chosen.max_examples // 4))
