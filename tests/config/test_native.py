"""``params.json`` says what its model's ``config.json`` says; what it says wrongly is named in its own words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import core
from core.config.native import from_params
from core.errors import ConfigError, QuantizationError
from core.weights import QuantizationConfig
from tests.fixtures import FIXTURES, oracles, real_config
from tests.fixtures.layouts import config_of, params_of

PUBLISHED = {path.stem: path for path in (FIXTURES / "params").glob("*.json")}
SMALL = {
    "dim": 64,
    "n_layers": 2,
    "head_dim": 16,
    "hidden_dim": 128,
    "n_heads": 4,
    "n_kv_heads": 2,
    "norm_eps": 1e-5,
    "vocab_size": 256,
}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2}


def load(directory: Path, params: dict[str, Any], **options: Any) -> Any:
    (directory / "params.json").write_text(json.dumps(params))
    return core.load_config(directory, **options)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_file_says_what_the_config_beside_it_says(name: str, tmp_path: Path) -> None:
    native = load(tmp_path, json.loads(PUBLISHED[name].read_text()), strict=True)
    (tmp_path / "config.json").write_text(json.dumps(real_config(name)))
    usual = core.load_config(tmp_path)
    assert type(native) is type(usual)
    assert native.rope_parameters == usual.rope_parameters  # type: ignore[attr-defined]
    # The context's length is not stated in these files, and changes nothing that is computed.
    same = native.model_dump().keys() - {"architectures", "max_position_embeddings"}
    assert {key: native.model_dump()[key] for key in same} == {key: usual.model_dump()[key] for key in same}


@pytest.mark.parametrize("name", oracles())
def test_every_reference_config_survives_the_translation(name: str, tmp_path: Path) -> None:
    raw = config_of(oracles()[name])
    native, usual = load(tmp_path, params_of(raw), strict=True), core.load_config(oracles()[name])
    assert native.model_dump(exclude={"architectures"}) == usual.model_dump(exclude={"architectures"})


@pytest.mark.parametrize(
    ("more", "model_type", "theta"),
    [
        ({}, "mistral", 1e4),
        ({"sliding_window": 4096}, "mistral", 1e4),
        ({"moe": EXPERTS}, "mixtral", 1e6),
        ({"moe": EXPERTS, "rope_theta": 5e4}, "mixtral", 5e4),
        ({"rope_theta": 1_000_000_000}, "mistral", 1e9),
    ],
)
def test_type_theta_and_window(more: dict[str, Any], model_type: str, theta: float, tmp_path: Path) -> None:
    config = load(tmp_path, {**SMALL, **more}, strict=True)
    assert (config.model_type, config.rope_parameters.rope_theta) == (model_type, theta)
    assert config.sliding_window == more.get("sliding_window")
    assert config.tie_word_embeddings is False


def test_yarn_is_translated(tmp_path: Path) -> None:
    yarn = {"factor": 16, "original_max_position_embeddings": 16384, "apply_scale": False, "beta": 32, "alpha": 1}
    rope = load(tmp_path, {**SMALL, "yarn": yarn, "rope_theta": 1e6}, strict=True).rope_parameters
    assert (rope.rope_type, rope.factor, rope.original_max_position_embeddings) == ("yarn", 16.0, 16384)
    assert (rope.beta_fast, rope.beta_slow, rope.attention_factor) == (32.0, 1.0, 1.0)
    scaled = load(tmp_path, {**SMALL, "yarn": {**yarn, "apply_scale": True}}, strict=True).rope_parameters
    assert scaled.attention_factor is None


def test_keys_without_counterpart_are_unread_by_their_own_names() -> None:
    raw = from_params({**SMALL, "max_batch_size": 8, "moe": {**EXPERTS, "num_shared_experts": 1}, "vision_encoder": {}})
    assert raw.keys() >= {"moe.num_shared_experts", "vision_encoder"}
    assert "max_batch_size" not in raw


@pytest.mark.parametrize("key", ["dim", "n_layers", "hidden_dim", "n_heads", "n_kv_heads", "norm_eps", "vocab_size"])
def test_a_missing_or_mistyped_size_is_named_as_the_file_has_it(key: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"params\.json: key '{key}' is missing"):
        load(tmp_path, {name: value for name, value in SMALL.items() if name != key})
    with pytest.raises(ConfigError, match=rf"params\.json: key '{key}' is of the wrong type .* found '64'"):
        load(tmp_path, {**SMALL, key: "64"})


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"model_type": "mamba"}, "key 'model_type' is 'mamba', which is not supported"),
        ({"llama_4_scaling": {"beta": 0.1}}, "key 'llama_4_scaling' asks for"),
        ({"sliding_window": [4096, None]}, "key 'sliding_window' gives each layer its own"),
        ({"sliding_window": "4096"}, "key 'sliding_window' is of the wrong type"),
        ({"moe": {"num_experts": 8}}, "key 'moe.num_experts_per_tok' is missing"),
        ({"moe": 8}, "key 'moe' is not an object"),
        ({"rope_theta": True}, "key 'rope_theta' is of the wrong type"),
        ({"tied_embeddings": 1}, "key 'tied_embeddings' is of the wrong type"),
    ],
)
def test_what_cannot_be_meant_is_refused(more: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, {**SMALL, **more})
    assert said in str(caught.value)
    assert str(tmp_path / "params.json") in str(caught.value)


def test_eight_bit_floats_are_refused_by_name() -> None:
    raw = from_params({**SMALL, "quantization": {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"}})
    with pytest.raises(QuantizationError, match="'fp8_e4m3'"):
        QuantizationConfig.from_config(raw)
