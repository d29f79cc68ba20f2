"""Configs are values: frozen, comparable, copyable; and what is wrong with one is said in the file's own words."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from pydantic import ValidationError

from core.config import RotaryConfig
from core.errors import ConfigError
from plugins.mistral.config import MistralConfig
from plugins.mixtral.config import MixtralConfig
from tests.fixtures import real_config

CONFIGS = [
    MistralConfig.from_dict(real_config("Mistral-7B-v0.1")),
    MixtralConfig.from_dict(real_config("WizardLM-2-8x22B")),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_copies_are_equal_and_of_the_same_class(config: RotaryConfig) -> None:
    for twin in (pickle.loads(pickle.dumps(config)), copy.deepcopy(config), copy.copy(config)):
        assert twin == config
        assert type(twin) is type(config)
    assert type(config).from_dict(config.model_dump()) == config  # a config's own dump is a config


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_a_config_does_not_change(config: RotaryConfig) -> None:
    for target in (config, config.rope_parameters):
        with pytest.raises(ValidationError, match="frozen"):
            target.rope_theta = 1.0  # type: ignore[union-attr]


def test_configs_differ_where_their_models_do() -> None:
    raw = real_config("Mistral-7B-v0.1")
    config = MistralConfig.from_dict(raw)
    assert config == MistralConfig.from_dict(raw | {"torch_dtype": "float16"})
    assert config == MistralConfig.from_dict(raw | {"head_dim": 128})
    assert config != MistralConfig.from_dict(raw | {"sliding_window": None})
    assert config != MistralConfig.from_dict(raw | {"rope_theta": 1e6})


def test_parsing_leaves_the_file_as_it_was() -> None:
    raw = real_config("Mistral-7B-v0.1") | {"rope_scaling": {"type": "yarn", "factor": 2.0}}
    before = copy.deepcopy(raw)
    MistralConfig.from_dict(raw)
    assert raw == before


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "string for a size": ({"hidden_size": "64"}, "key 'hidden_size': expected a valid integer, found '64' (str)"),
    "boolean for a size": ({"vocab_size": True}, "key 'vocab_size': expected a valid integer, found True (bool)"),
    "null for a size": ({"vocab_size": None}, "key 'vocab_size': expected a valid integer, found None (NoneType)"),
    "zero layers": ({"num_hidden_layers": 0}, "key 'num_hidden_layers': expected greater than 0, found 0 (int)"),
    "list for a number": ({"rms_norm_eps": [1]}, "key 'rms_norm_eps': expected a valid number, found [1] (list)"),
    "infinite theta": ({"rope_theta": float("inf")}, "key 'rope_theta': expected a finite number, found inf (float)"),
    "NaN": ({"rms_norm_eps": float("nan")}, "key 'rms_norm_eps': expected a finite number, found nan (float)"),
    "string for a window": ({"sliding_window": "4096"}, "key 'sliding_window': expected a valid integer"),
    "architectures a string": ({"architectures": "MistralForCausalLM"}, "key 'architectures': expected a valid list"),
    "rope_scaling a string": ({"rope_scaling": "linear"}, "key 'rope_scaling': expected"),
    "rope_scaling a list": ({"rope_scaling": [1]}, "key 'rope_scaling': expected"),
    "rope_parameters a number": ({"rope_parameters": 3}, "key 'rope_parameters': expected"),
    "factor a string": (
        {"rope_scaling": {"type": "linear", "factor": "2"}},
        "key 'rope_scaling.factor': expected a valid number, found '2' (str)",
    ),
    "factor negative": (
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": -1}},
        "key 'rope_parameters.factor': expected greater than 0, found -1 (int)",
    ),
    "factor absurd": (
        {"rope_scaling": {"type": "yarn", "factor": 1e308}},
        "key 'rope_scaling.factor': 1e+308 is too large to compute a rotary embedding with",
    ),
    "beta absurd": (
        {"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_slow": 5e-324}},
        "key 'rope_scaling.beta_slow': 4.94066e-324 is too small to compute a rotary embedding with",
    ),
    "theta absurd": ({"rope_theta": 1e300}, "key 'rope_theta': 1e+300 is too large to compute"),
    "original length absurd": (
        {"rope_scaling": {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 10**400}},
        "key 'rope_scaling.original_max_position_embeddings': expected less than 2147483648",
    ),
    "type a list": ({"rope_scaling": {"type": ["linear"]}}, "key 'rope_scaling.type': expected 'default', 'linear'"),
    "rope_type unknown": (
        {"rope_parameters": {"rope_type": "su"}},
        "key 'rope_parameters.rope_type': expected 'default'",
    ),
    "llama3 incomplete": (
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        "key 'rope_scaling': rope_type 'llama3' needs low_freq_factor, high_freq_factor",
    ),
    "llama3 reversed": (
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0}},
        "key 'rope_scaling': low_freq_factor (4.0) must be below high_freq_factor (1.0)",
    ),
    "longrope of another length": (
        {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}},
        "short_factor of the rotary embedding has 1 numbers, but each head has 64 pairs",
    ),
    "original length a string": (
        {"original_max_position_embeddings": "4096", "rope_scaling": {"type": "yarn", "factor": 2.0}},
        "key 'original_max_position_embeddings': expected a valid integer, found '4096' (str)",
    ),
    "half a head rotated": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, but mistral rotates whole"),
    "odd head": ({"head_dim": 31}, "even number of features in each head, not 31"),
    "uneven groups": (
        {"num_key_value_heads": 5},
        "num_attention_heads (32) is not a multiple of num_key_value_heads (5)",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_in_the_files_own_words(case: str) -> None:
    changes, said = WRONG[case]
    with pytest.raises(ConfigError) as caught:
        MistralConfig.from_dict(real_config("Mistral-7B-v0.1") | changes)
    assert said in str(caught.value)
    assert "\n  " in str(caught.value)  # and a hint
    assert len(str(caught.value)) < 400


def test_many_problems_are_counted() -> None:
    with pytest.raises(ConfigError) as caught:
        MistralConfig.from_dict({"model_type": "mistral"})
    assert "key 'vocab_size' is missing" in str(caught.value)
    assert "and 1 more" in str(caught.value)
    assert "head_dim" not in str(caught.value)  # nobody has to state it


@pytest.mark.parametrize(
    "name",
    ["MistralForSequenceClassification", "MistralModel", "MistralForTokenClassification", "MixtralForCausalLM", ""],
)
def test_an_architecture_without_this_head_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match=f"architectures names {name}.*\n.*text generation"):
        MistralConfig.from_dict(real_config("Mistral-7B-v0.1") | {"architectures": [name]})


@pytest.mark.parametrize("architectures", [None, [], ["MistralForCausalLM"], ["Other", "MistralForCausalLM"]])
def test_an_architecture_with_the_head_or_none_named_is_accepted(architectures: list[str] | None) -> None:
    MistralConfig.from_dict(real_config("Mistral-7B-v0.1") | {"architectures": architectures})


def test_num_experts_is_another_name() -> None:
    raw = real_config("Mixtral-8x7B-v0.1")
    del raw["num_local_experts"]
    assert MixtralConfig.from_dict(raw | {"num_experts": 4}).num_local_experts == 4
    assert MixtralConfig.unread_keys(raw | {"num_experts": 4}) == []


@pytest.mark.parametrize(
    "changes", [{"num_hidden_layers": 10**6}, {"hidden_size": 2**31}, {"max_position_embeddings": 10**5000}]
)
def test_numbers_out_of_this_world_are_refused_at_once(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))) as caught:
        MistralConfig.from_dict(real_config("Mistral-7B-v0.1") | changes)
    assert len(str(caught.value)) < 400
