"""Every default and every spelling means what it means to transformers, whose answers are recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from core.config import RotaryConfig
from plugins.mistral.config import MistralConfig
from plugins.mixtral.config import MixtralConfig

RECORD = json.loads((Path(__file__).parent / "transformers_configs.json").read_text())
CLASSES: dict[str, type[RotaryConfig]] = {"mistral": MistralConfig, "mixtral": MixtralConfig}
ROWS = {f"{row['raw']['model_type']}: {row['name']}": row for row in RECORD["rows"]}
# transformers refuses these because of how it is written, not because of what they say.
STRICTER = {
    "mistral: num_key_value_heads null": {"num_key_value_heads": 8},
    "mixtral: num_key_value_heads null": {"num_key_value_heads": 8},
    **{
        f"mixtral: {spelling}: {name}": {"head_dim": 128}
        for spelling in ("rope_scaling", "rope_parameters")
        for name in ("longrope", "longrope, factor", "longrope, attention factor")
    },
}


def effective(config: RotaryConfig, names: set[str]) -> dict[str, Any]:
    values = config.model_dump(include=names)
    rope = {key: value for key, value in values["rope_parameters"].items() if value is not None}
    assert rope.pop("partial_rotary_factor") == 1
    if rope["truncate"]:  # the default, which transformers leaves unsaid
        del rope["truncate"]
    return values | {"rope_parameters": rope}


def test_the_record_is_of_the_reference_implementation() -> None:
    assert RECORD["versions"]["transformers"] >= "5"
    assert len(ROWS) > 100
    assert {name for name, row in ROWS.items() if "refused" in row} == set(STRICTER)


@pytest.mark.parametrize("name", [name for name in ROWS if name not in STRICTER])
def test_a_config_means_what_it_means_to_transformers(name: str) -> None:
    row = ROWS[name]
    config = CLASSES[row["raw"]["model_type"]].from_dict(row["raw"])
    assert effective(config, set(row["effective"])) == row["effective"]


@pytest.mark.parametrize("name", STRICTER)
def test_what_transformers_refuses_for_its_own_reasons_is_read(name: str) -> None:
    raw = ROWS[name]["raw"]
    config = CLASSES[raw["model_type"]].from_dict(raw)
    assert config.model_dump(include=set(STRICTER[name])) == STRICTER[name]


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [
        ("mistral", {"sliding_window": 4096, "rms_norm_eps": 1e-6, "num_key_value_heads": 8, "theta": 1e4}),
        ("mixtral", {"sliding_window": None, "rms_norm_eps": 1e-5, "num_key_value_heads": 8, "theta": 1e6}),
    ],
)
def test_the_defaults_that_differ_are_these(model_type: str, expected: dict[str, Any]) -> None:
    """Stated once by hand, so that a record made by mistake shows."""
    values = ROWS[f"{model_type}: sizes alone"]["effective"]
    assert values | {"theta": values["rope_parameters"]["rope_theta"]} == values | expected | {
        "theta": expected["theta"]
    }
    assert values["tie_word_embeddings"] is False
