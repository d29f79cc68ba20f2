"""Settings for all tests."""

import os

# Comparisons with a float32 reference need float32 products; MLX's CUDA backend rounds them to TF32 unless told not to.
os.environ.setdefault("MLX_ENABLE_TF32", "0")

from hypothesis import settings

# Timing is never a test's result; in CI the examples are the same in every run, so that a failure can be repeated.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")
