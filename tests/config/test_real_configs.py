"""Published configs parse, as what they are, and leave nothing unread."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import core
from core.errors import ConfigError, UnknownModelTypeError
from core.weights import QuantizationConfig
from tests.fixtures import oracles, real_config, real_configs

# What is worth knowing of each: the keys in which they differ.
EXPECTED: dict[str, dict[str, Any]] = {
    "Mistral-7B-v0.1": {"sliding_window": 4096, "head_dim": 128, "vocab_size": 32000, "theta": 1e4},
    "Mistral-7B-v0.3": {"sliding_window": None, "head_dim": 128, "vocab_size": 32768, "theta": 1e6},
    "Mistral-Nemo-Base-2407": {"head_dim": 128, "hidden_size": 5120, "num_attention_heads": 32, "theta": 1e6},
    "Dolphin3.0-R1-Mistral-24B": {"head_dim": 128, "hidden_size": 5120, "vocab_size": 131074, "theta": 1e8},
    "Devstral-Small-2507": {"head_dim": 128, "max_position_embeddings": 131072, "theta": 1e9},
    "Mixtral-8x7B-v0.1": {"num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": None, "theta": 1e6},
    "WizardLM-2-8x22B": {"num_hidden_layers": 56, "num_attention_heads": 48, "head_dim": 128, "theta": 1e6},
}
OTHERS = {"Ministral-3-3B-2512": "ministral3", "mlx-3bit-qwen2": "qwen2"}


def load_config(directory: Path, raw: dict[str, Any], **options: Any) -> Any:
    (directory / "config.json").write_text(json.dumps(raw))
    return core.load_config(directory, **options)


def test_every_published_config_is_tested() -> None:
    assert set(real_configs()) == EXPECTED.keys() | OTHERS.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_a_published_config_parses_strictly(name: str, tmp_path: Path) -> None:
    config = load_config(tmp_path, real_config(name), strict=True)
    values = config.model_dump() | {"theta": config.rope_parameters.rope_theta}
    assert {key: values[key] for key in EXPECTED[name]} == EXPECTED[name]
    assert config.unread_keys(real_config(name)) == []


@pytest.mark.parametrize("name", OTHERS)
def test_another_architecture_is_told_by_its_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnknownModelTypeError, match=OTHERS[name]):
        load_config(tmp_path, real_config(name))


@pytest.mark.parametrize("name", oracles())
def test_configs_of_either_transformers_parse_strictly(name: str) -> None:
    core.load_config(oracles()[name], strict=True)


def test_a_published_quantization_block_parses() -> None:
    quantization = QuantizationConfig.from_config(real_config("mlx-3bit-qwen2"))
    assert quantization is not None
    assert str(quantization.default) == "3-bit, groups of 64"
    assert not quantization.overrides


UNREAD = {
    "a key nobody knows": ({"surprise": 1}, ["surprise"]),
    "code in the checkpoint": ({"auto_map": {"AutoModel": "modeling.Evil"}}, ["auto_map"]),
    "keys that change the attention": (
        {"layer_types": ["full_attention"], "attention_bias": True},
        ["attention_bias", "layer_types"],
    ),
    "a nested key": (
        {"rope_scaling": {"type": "linear", "factor": 2.0, "magic": 1}},
        ["rope_scaling.magic"],
    ),
    "a nested key of the new spelling": (
        {"rope_parameters": {"rope_theta": 1e4, "llama_4_scaling_beta": 0.1}},
        ["rope_parameters.llama_4_scaling_beta", "rope_theta"],
    ),
    "the spelling that loses": (
        {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_theta": 1e4}},
        ["rope_parameters"],
    ),
    "the theta that loses": ({"rope_parameters": {"rope_theta": 7.0}}, ["rope_theta"]),
    "nothing": ({"transformers_version": "5", "torch_dtype": "float16", "initializer_range": 1}, []),
}


@pytest.mark.parametrize("case", UNREAD)
def test_keys_that_nobody_reads_are_listed_or_refused(case: str, tmp_path: Path) -> None:
    changes, unread = UNREAD[case]
    raw = real_config("Mistral-7B-v0.3") | changes
    assert load_config(tmp_path, raw).unread_keys(raw) == unread
    if not unread:
        load_config(tmp_path, raw, strict=True)
        return
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path, raw, strict=True)
    for part in (*unread, "config.json", "Without strict"):
        assert part in str(caught.value)


def test_the_plan_lists_them_too(tmp_path: Path) -> None:
    raw = real_config("Mistral-7B-v0.3") | {"surprise": 1}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    from tests.checkpoint.sparse import write_shard

    write_shard(tmp_path / "model.safetensors", {"model.norm.weight": ("BF16", [4096])})
    assert core.plan(tmp_path).unread_keys == ("surprise",)
    with pytest.raises(ConfigError, match="surprise"):
        core.plan(tmp_path, strict=True)
