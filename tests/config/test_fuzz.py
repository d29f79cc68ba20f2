"""Whatever a file says, it is a config or a ``ConfigError``; and what is a config builds its rotary embedding."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.config import RotaryConfig
from core.errors import ConfigError, QuantizationError
from core.nn import RoPE
from core.weights import QuantizationConfig
from plugins.mistral.config import MistralConfig
from plugins.mixtral.config import MixtralConfig
from tests.fixtures import real_config

CLASSES = [MistralConfig, MixtralConfig]
KEYS = sorted(
    {*MixtralConfig.read_keys(), "rope_type", "type", "factor", "short_factor", "long_factor", "truncate", "mscale"}
    | {"low_freq_factor", "high_freq_factor", "beta_fast", "attention_factor", "original_max_position_embeddings"}
)
TYPES = st.sampled_from(["default", "linear", "dynamic", "yarn", "llama3", "longrope", "su"])
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(0, 70)
    | st.floats()
    | st.text(max_size=5)
    | TYPES
    | st.just(10**400)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=4), inner, max_size=6)
    ),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=6), VALUES, max_size=12)
NUMBERS = st.floats(1e-6, 1e9) | st.integers(1, 70)
ROPES = st.fixed_dictionaries(
    {
        "rope_type": TYPES,
        "low_freq_factor": NUMBERS,
        "high_freq_factor": NUMBERS,
        "short_factor": st.lists(NUMBERS, min_size=4, max_size=4),
        "long_factor": st.lists(NUMBERS, min_size=4, max_size=4),
    },
    optional={
        "rope_theta": NUMBERS,
        "factor": st.floats(1e-3, 1e3) | st.none(),
        "original_max_position_embeddings": st.integers(1, 10**6),
        "beta_fast": NUMBERS,
        "beta_slow": NUMBERS,
        "mscale": st.floats(-10, 10),
        "mscale_all_dim": st.floats(-10, 10),
        "truncate": st.booleans(),
        "attention_factor": NUMBERS,
        "partial_rotary_factor": st.just(1) | NUMBERS,
    },
)
QUIET = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])


def parse(cls: type[RotaryConfig], raw: dict[str, Any]) -> RotaryConfig | None:
    """A config, or None where it is refused; any other exception is a failure."""
    config, said = None, ""
    try:
        config = cls.from_dict(raw)
    except ConfigError as error:
        said = str(error)
    assert len(said) < 3000
    cls.unread_keys(raw)
    return config


@pytest.mark.parametrize("cls", CLASSES)
@given(raw=OBJECTS)
@QUIET
def test_any_object_is_a_config_or_an_error(cls: type[RotaryConfig], raw: dict[str, Any]) -> None:
    parse(cls, raw)


@pytest.mark.parametrize("cls", CLASSES)
@given(changes=OBJECTS)
@QUIET
def test_any_change_of_a_good_config_is_a_config_or_an_error(cls: type[RotaryConfig], changes: dict[str, Any]) -> None:
    parse(cls, real_config("Mixtral-8x7B-v0.1") | {"architectures": None} | changes)


@given(rope=ROPES, head_dim=st.sampled_from([2, 4, 8]), length=st.integers(1, 10**6), new=st.booleans())
@QUIET
def test_a_config_that_parses_builds_its_rotary_embedding(
    rope: dict[str, Any], head_dim: int, length: int, new: bool
) -> None:
    raw = real_config("Mistral-7B-v0.1") | {"head_dim": head_dim, "max_position_embeddings": length}
    config = parse(MistralConfig, raw | {"rope_parameters" if new else "rope_scaling": rope})
    if config is not None:
        embedding = RoPE(head_dim, config.rope_parameters, config.max_position_embeddings)
        rotated = embedding(mx.ones((1, 1, 1, head_dim)), mx.array([3], dtype=mx.int32))
        assert not mx.isnan(rotated).any().item()


@given(block=VALUES, key=st.sampled_from(["quantization", "quantization_config"]))
@QUIET
def test_any_quantization_block_is_read_or_refused(block: Any, key: str) -> None:
    said = ""
    try:
        QuantizationConfig.from_config({key: block})
    except QuantizationError as error:
        said = str(error)
    assert len(said) < 3000
