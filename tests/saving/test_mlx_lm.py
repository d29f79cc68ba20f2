"""mlx-lm's checkpoints load here, and ours load in mlx-lm, with the same logits."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import core
from core.checkpoint.source import DEMOS
from tests.fixtures import oracle
from tests.saving.compare import assert_same_tensors

FIXTURE = Path(__file__).parents[1] / "fixtures" / "mlx_lm" / "mixtral_4bit"
TOLERANCE = 1e-3
"""On logits of a scale of 15. Measured: 0 for the fixture on a CPU."""
PROMPT = [3, 17, 42, 5, 29, 8, 61]  # shorter than any window, which mlx-lm ignores
needs_mlx_lm = pytest.mark.skipif(importlib.util.find_spec("mlx_lm") is None, reason="mlx-lm is not installed")


def test_what_mlx_lm_quantized_computes_the_same_here_and_is_written_back_as_it_was(tmp_path: Path) -> None:
    lm = core.load(FIXTURE, tokenizer=False, dtype=mx.float32)
    with np.load(FIXTURE / "reference.npz") as arrays:
        logits = np.array(lm.model(mx.array(arrays["input_ids"])[None])[0])
        np.testing.assert_allclose(logits, arrays["logits"], atol=TOLERANCE, rtol=0)
    core.save(lm, tmp_path / "saved")
    assert_same_tensors(FIXTURE, tmp_path / "saved")


@needs_mlx_lm
@pytest.mark.parametrize(
    "source", [oracle("mistral_swa8"), oracle("mixtral_swa8"), *map(DEMOS.joinpath, ("mistral", "mixtral")), FIXTURE]
)
@pytest.mark.parametrize("layout", ["hf", "mlx"])
def test_what_we_write_computes_the_same_in_mlx_lm(source: Path, layout: str, tmp_path: Path) -> None:
    from mlx_lm.utils import load_model

    core.convert(source, tmp_path / "out", layout=layout)
    theirs, _ = load_model(tmp_path / "out")
    theirs.set_dtype(mx.float32)
    ours = core.load(source, tokenizer=False, dtype=mx.float32).model
    ids = mx.array([PROMPT])
    np.testing.assert_allclose(np.array(theirs(ids)), np.array(ours(ids)), atol=TOLERANCE, rtol=0)
