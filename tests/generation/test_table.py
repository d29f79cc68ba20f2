"""The table of settings is what Python, the command line and the reading of a checkpoint have; one entry is enough."""

from __future__ import annotations

import ast
import inspect
import json
import os
import subprocess
import sys
import textwrap
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import core
from core.cli.program import main
from core.cli.sampling import _reader
from core.errors import UsageError
from core.generation import DEFAULT_ORDER, Sampling, SamplingOptions, checkpoint_settings
from core.generation.processors.pipeline import _processor
from core.sampling.settings import SETTINGS, STAGES

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def made_up() -> dict[str, Any]:
    """What a process says whose table has the entry of ``made_up_sampler`` too."""
    command = [sys.executable, "-m", "tests.generation.made_up_sampler"]
    env = {**os.environ, "COLUMNS": "120"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_what_is_spelled_out_for_type_checkers_is_the_table() -> None:
    body = ast.parse(textwrap.dedent(inspect.getsource(Sampling))).body[0]
    assert isinstance(body, ast.ClassDef)
    spelled = {
        item.target.id: ast.unparse(item.annotation)
        for item in body.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    }
    assert spelled == {name: setting.kind.annotation for name, setting in SETTINGS.items()}
    signature = inspect.signature(core.LanguageModel.sampling).parameters
    shown = {name: item.annotation for name, item in signature.items() if name != "self"}
    assert SamplingOptions.__annotations__ == shown
    assert list(SamplingOptions.__annotations__) == list(spelled), "in the same order"
    described = inspect.getdoc(Sampling)
    assert described is not None
    assert [name for name in SETTINGS if f"\n    {name}: " not in described] == []


@pytest.mark.parametrize("name", SETTINGS)
def test_an_entry_agrees_with_itself(name: str) -> None:
    setting = SETTINGS[name]
    default = getattr(Sampling(), name)
    assert setting.kind.checked(name, default) == default == setting.default
    if setting.off is not None:
        assert setting.kind.checked(name, setting.off) == setting.off
        assert not setting.asks(setting.off)
    if setting.flag is not None:
        assert callable(_reader(setting.kind))


def test_only_the_temperature_is_not_off_by_default() -> None:
    """At temperature 0 it does nothing either."""
    switches = [setting for setting in SETTINGS.values() if setting.off is not None]
    assert [setting.name for setting in switches if setting.asks(setting.default)] == ["temperature"]
    assert not any(Sampling().uses(name) for name in STAGES)


def test_every_stage_has_a_place_of_its_own_and_a_processor() -> None:
    places = [stage.place for stage in STAGES.values()]
    assert places == sorted(set(places))
    assert [name for name in STAGES if name not in DEFAULT_ORDER] == ["forbidden"]
    assert all(callable(_processor(name)) for name in DEFAULT_ORDER)


def test_no_key_belongs_to_two_settings() -> None:
    keys = [key for setting in SETTINGS.values() for key in setting.keys]
    assert len(set(keys)) == len(keys)


def test_the_help_has_every_flag(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for command in ("generate", "chat"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        text = " ".join(capsys.readouterr().out.split())
        for name, setting in SETTINGS.items():
            shown = f"--{name.replace('_', '-')}"
            if setting.flag is None:
                assert shown not in text
            else:
                assert f"{shown} {setting.flag.metavar}" in text
                assert setting.flag.help in text


@pytest.mark.parametrize("name", [name for name, setting in SETTINGS.items() if setting.keys])
def test_a_bad_value_in_a_checkpoint_is_an_error_of_the_range(name: str) -> None:
    for key in SETTINGS[name].keys:
        with pytest.raises(UsageError, match=f"generation_config.json: .*{name}") as caught:
            checkpoint_settings({key: -1, "do_sample": True})
        assert caught.value.hint == f"Give {name} yourself."


def test_one_entry_is_a_setting_of_python(made_up: dict[str, Any]) -> None:
    assert "logit_cap" not in {item.name for item in fields(Sampling)}, "the entry is of the other process only"
    assert made_up["default"] == 100
    assert "float | None" in made_up["in signatures"]
    after = DEFAULT_ORDER.index("top_k") + 1
    assert made_up["order"] == [*DEFAULT_ORDER[:after], "logit_cap", *DEFAULT_ORDER[after:]]
    assert made_up["chosen"] == [1, 0]


def test_one_entry_has_its_range(made_up: dict[str, Any]) -> None:
    assert "logit_cap is out of range" in made_up["out of range"]
    assert "1 to 100" in made_up["out of range"]
    assert "order leaves 'logit_cap' out" in made_up["left out of the order"]


def test_one_entry_is_in_the_help(made_up: dict[str, Any]) -> None:
    assert "--logit-cap CAP" in made_up["help"]
    assert "choose among logits up to CAP" in made_up["help"]


def test_one_entry_is_read_of_a_checkpoint(made_up: dict[str, Any]) -> None:
    assert made_up["read"] == [{"logit_cap": 7.0}, {"logit_cap": 7.0}]
    assert "generation_config.json: logit_cap is out of range" in made_up["read out of range"]
    assert made_up["unread"] == []
