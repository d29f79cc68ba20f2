"""What two checkpoints have in common, told from their bytes."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np

import core
from tests.fixtures.variants import read_tensors

PROMPT = mx.array([[1, 7, 42, 5, 29, 8, 61, 3, 90, 17, 33, 2]])


def assert_same_tensors(left: Path, right: Path) -> None:
    """Same names, dtypes, shapes and bytes."""
    ours, theirs = read_tensors(left), read_tensors(right)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []


def logits(path: Path) -> np.ndarray:
    """Logits in float32."""
    return np.array(core.load(path, tokenizer=False, dtype=mx.float32).model(PROMPT)[0])
