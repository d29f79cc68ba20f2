"""The rotation of ``core.nn.RoPE`` against cosines, sines and frequencies recorded from transformers."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import core
from core.errors import ConfigError
from core.nn import RoPE
from plugins.mistral.config import MistralConfig
from plugins.mixtral.config import MixtralConfig

with np.load(Path(__file__).parent / "transformers_rope.npz") as _file:
    RECORD = dict(_file)
CASES = json.loads(str(RECORD["cases"]))
POSITIONS = RECORD["positions"].tolist()


def rope_of(case: str, *, traditional: bool = False) -> RoPE:
    raw = CASES[case]
    config = {"mistral": MistralConfig, "mixtral": MixtralConfig}[raw["model_type"]].from_dict(raw)
    return RoPE(config.head_dim, config.rope_parameters, config.max_position_embeddings, traditional=traditional)


def rotated(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """transformers' ``q * cos + rotate_half(q) * sin`` in float64."""
    first, second = np.split(x.astype(np.float64), 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def tolerance(case: str, index: int) -> np.ndarray:
    """An angle is the product of a position and a frequency that both sides hold in float32, rounded differently."""
    angles = POSITIONS[index] * RECORD[f"{case}/inv_freq"][index]
    return np.tile(4e-5 + 1e-6 * angles, 2)


def check(case: str, x: np.ndarray, y: np.ndarray, index: int) -> None:
    """``x`` and ``y`` are ``[..., head_dim]`` in the half layout."""
    expected = rotated(x, RECORD[f"{case}/cos"][index], RECORD[f"{case}/sin"][index])
    assert (np.abs(y - expected) <= tolerance(case, index)).all(), f"{case} at position {POSITIONS[index]}"


def test_the_record_covers_every_type() -> None:
    types = {raw["rope_scaling"].get("rope_type", raw["rope_scaling"].get("type")) for raw in CASES.values()}
    assert types == {"default", "linear", "dynamic", "yarn", "llama3", "longrope"}


@pytest.mark.parametrize(
    ("scaling", "unread"),
    [
        ({"factor": 4.0}, ["factor"]),
        ({"type": "default", "factor": 4.0, "low_freq_factor": 1.0}, ["factor", "low_freq_factor"]),
        ({"type": "linear", "factor": 4.0, "beta_fast": 32}, ["beta_fast"]),
        (
            {"rope_type": "linear", "factor": 4.0, "original_max_position_embeddings": 9},
            ["original_max_position_embeddings"],
        ),
        ({"rope_type": "dynamic", "factor": 4.0, "long_factor": [1.0]}, ["long_factor"]),
        ({"rope_type": "yarn", "factor": 4.0, "beta_fast": 32, "mscale": 1.0, "truncate": True}, []),
        ({"rope_type": "linear", "factor": 4.0, "beta_fast": None}, []),
    ],
    ids=str,
)
def test_keys_that_the_type_does_not_read_are_unread(scaling: dict, unread: list[str]) -> None:
    raw = CASES[next(iter(CASES))] | {"rope_scaling": scaling, "rope_theta": 1e4}
    raw.pop("rope_parameters", None)
    config = MistralConfig.from_dict(raw | {"model_type": "mistral"})
    found = [key for key in config.unread_keys(raw) if key.startswith("rope_scaling.")]
    assert found == [f"rope_scaling.{key}" for key in unread]


ABSURD: list[dict] = [
    {"factor": 1e308},
    {"factor": 5e-324},
    {"beta_fast": 1e308},
    {"beta_slow": 5e-324},
    {"original_max_position_embeddings": 10**400},
    {"attention_factor": 1e300},
    {"mscale": 1.0, "mscale_all_dim": -7.213475204444817},
    {"rope_theta": 1e308},
    {"rope_type": "linear", "factor": 5e-324},
    {"rope_type": "longrope", "short_factor": [0.0] * 64, "long_factor": [1.0] * 64},
    {"rope_type": "longrope", "short_factor": [1.0] * 64, "long_factor": [-1.0] * 64},
]


@pytest.mark.parametrize("absurd", ABSURD, ids=lambda absurd: list(absurd)[-1])
def test_absurd_numbers_are_the_configs_fault(absurd: dict) -> None:
    """And not the plugin's, whose block would be the first to compute with them."""
    name = list(absurd)[-1] if "short_factor" not in absurd else "short_factor|long_factor"
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "rope_theta": 1e4}
    raw = CASES[next(iter(CASES))] | {"model_type": "mistral", "rope_scaling": None, "rope_parameters": yarn | absurd}
    with pytest.raises(ConfigError, match=name):
        core.build(raw)


@pytest.mark.parametrize("case", CASES)
def test_rotation_is_transformers_in_the_half_layout(case: str) -> None:
    rope, random = rope_of(case), np.random.default_rng(0)
    for index, position in enumerate(POSITIONS):
        x = random.uniform(-1, 1, (1, 3, 1, 128)).astype(np.float32)
        y = rope(mx.array(x), mx.array([position], dtype=mx.int32))
        check(case, x, np.array(y), index)


@pytest.mark.parametrize("case", CASES)
def test_the_traditional_layout_rotates_neighbours_by_the_same_angles(case: str) -> None:
    rope, random = rope_of(case, traditional=True), np.random.default_rng(1)
    for index, position in enumerate(POSITIONS):
        x = random.uniform(-1, 1, (1, 2, 1, 128)).astype(np.float32)
        pairs = x.reshape(1, 2, 1, 64, 2).swapaxes(-1, -2).reshape(x.shape)  # (0, 1, 2, 3, …) → (0, 2, …, 1, 3, …)
        y = np.array(rope(mx.array(x), mx.array([position], dtype=mx.int32)))
        check(case, pairs, y.reshape(1, 2, 1, 64, 2).swapaxes(-1, -2).reshape(x.shape), index)


@pytest.mark.parametrize("case", CASES)
def test_the_attention_factor_scales_the_rotation(case: str) -> None:
    x = np.ones((1, 1, 1, 128), np.float32)
    y = np.array(rope_of(case)(mx.array(x), mx.array([5], dtype=mx.int32)))
    factor = RECORD[f"{case}/attention_factor"]
    np.testing.assert_allclose(np.linalg.norm(y), factor * np.linalg.norm(x), rtol=1e-5)


def test_the_factors_that_mscale_gives_are_not_all_one() -> None:
    factors = {case: float(RECORD[f"{case}/attention_factor"]) for case in CASES}
    assert factors["mistral: yarn, mscale"] not in (1.0, factors["mistral: yarn"])
    assert factors["mistral: yarn, attention factor"] == 1.5


@pytest.mark.parametrize("case", ["mistral: default", "mistral: linear", "mixtral: yarn", "mixtral: llama3"])
def test_rows_and_positions_of_a_step_are_independent(case: str) -> None:
    """``[batch, heads, seq]`` at once equals position by position, where frequencies do not depend on the length."""
    rope = rope_of(case)
    x = mx.random.normal((2, 2, 4, 128), key=mx.random.key(3))
    starts = [3, 4093]
    together = rope(x, mx.array(starts, dtype=mx.int32))
    for row, start in enumerate(starts):
        for offset in range(4):
            one = rope(x[row : row + 1, :, offset : offset + 1], mx.array([start + offset], dtype=mx.int32))
            assert mx.allclose(together[row : row + 1, :, offset : offset + 1], one, atol=1e-5).item()


def test_half_precision_keeps_its_dtype() -> None:
    x = mx.ones((1, 1, 2, 128), dtype=mx.bfloat16)
    for case in ("mistral: yarn, mscale", "mistral: dynamic", "mistral: default"):
        assert rope_of(case)(x, mx.array([0], dtype=mx.int32)).dtype == mx.bfloat16
