"""The reference tool: its arguments and errors everywhere, its references where transformers is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import mlx.core as mx
import pytest

import core
from core.errors import UsageError
from core.testing import Reference
from core.testing.diff import diff
from core.testing.reference import main, make_reference
from core.testing.shrink import changes, shrunk
from tests.fixtures import real_config, real_configs
from tests.testing.mutant import REFERENCES

ROOT = Path(__file__).parents[2]
PYTHON = os.environ.get("CORELM_REFERENCE_PYTHON") or (sys.executable if find_spec("transformers") else None)
"""An interpreter with the extra ``reference``."""


def without_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.testing.reference.importlib.util.find_spec", lambda _: None)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["no/such/dir", "OUT"], 1, "there is no such config"),
        (["no_such.json", "OUT"], 1, "there is no such config"),
        (["broken.json", "OUT"], 1, "cannot be read as JSON"),
        (["typeless.json", "OUT"], 1, "key 'model_type' is missing"),
        (["good.json", "OUT", "--length", "3"], 2, "the prompt is too short"),
        (["good.json", "full"], 2, "holds files already"),
        (["good.json", "good.json"], 2, "is a file, and should be a directory"),
        (["good.json", "OUT"], 1, 'pip install "corelm[reference]"'),
        (["mistral", "OUT"], 1, 'pip install "corelm[reference]"'),
    ],
)
def test_errors_say_what_to_do(
    arguments: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    without_extra(monkeypatch)
    monkeypatch.chdir(tmp_path)
    Path("broken.json").write_text("{")
    Path("typeless.json").write_text("{}")
    Path("good.json").write_text('{"model_type": "mistral"}')
    Path("full").mkdir()
    Path("full/file").touch()
    assert main(arguments) == code
    said = capsys.readouterr()
    assert message in said.err
    assert "Traceback" not in said.err
    assert not said.out
    assert not Path("OUT").exists()
    assert main([*arguments, "--debug"]) == code
    assert "Traceback" in capsys.readouterr().err


def test_usage_is_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main([])
    assert error.value.code == 2
    assert "CONFIG" in capsys.readouterr().err


def test_the_command_starts_without_pytest_and_without_mlx() -> None:
    program = "import sys, core.testing.reference; print([n for n in ('mlx', 'pytest', 'torch') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", real_configs())
def test_shrunk_configs_are_tiny_and_of_the_same_shape(name: str) -> None:
    raw = real_config(name)
    small = shrunk(raw)
    assert small.keys() == raw.keys()
    told = "\n".join(changes(raw, small))
    text, before = small.get("text_config", small), raw.get("text_config", raw)
    for key in before:
        if text[key] != before[key] and not isinstance(text[key], dict):
            assert f"{key}: {before[key]} → {text[key]}" in told
    grouped = before["num_attention_heads"] > before["num_key_value_heads"]
    assert (text["num_attention_heads"] > text["num_key_value_heads"]) == grouped
    assert (text.get("sliding_window") is None) == (before.get("sliding_window") is None)
    if raw["model_type"] in ("mistral", "mixtral"):
        small.pop("quantization_config", None)
        assert sum(array.size for array in _arrays(small)) < 2_000_000


def _arrays(raw: dict[str, object]) -> list[mx.array]:
    from mlx.utils import tree_flatten

    return [array for _, array in tree_flatten(core.build(raw).model.parameters())]


def test_every_kind_of_layer_stays() -> None:
    kinds = ["window"] * 5 + ["full"] + ["window"] * 6
    small = shrunk({"num_hidden_layers": 12, "layer_types": kinds, "sliding_window": 4096})
    assert small == {"num_hidden_layers": 3, "layer_types": ["window", "window", "full"], "sliding_window": 8}


def test_tiny_configs_are_left_alone() -> None:
    raw = json.loads((REFERENCES["mistral"] / "config.json").read_text())
    assert shrunk(raw) == raw
    assert changes(raw, shrunk(raw)) == []


@pytest.mark.skipif(PYTHON is None, reason="the extra `reference` is not installed (CORELM_REFERENCE_PYTHON names one)")
@pytest.mark.parametrize(("source", "built_in"), [("mixtral", True), ("olmo2", False), ("gemma2", False)])
def test_references_of_transformers(source: str, built_in: bool, tmp_path: Path) -> None:
    command = [str(PYTHON), "-m", "core.testing.reference", source, str(tmp_path / "out"), "--tiny"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert "hidden_size: " in done.stdout
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"config.json", "meta.json", "model.safetensors", "reference.npz"}
    arrays = Reference.read(tmp_path / "out").arrays
    known = Reference.read(REFERENCES["mistral"]).arrays
    assert arrays.keys() == known.keys()
    assert arrays["hidden_states"].shape == (4, 1, 40, 64)
    if built_in:
        lm = core.load(tmp_path / "out", tokenizer=False, dtype=mx.float32)
        assert diff(lm.model, tmp_path / "out").first is None


@pytest.mark.skipif(PYTHON is None, reason="the extra `reference` is not installed (CORELM_REFERENCE_PYTHON names one)")
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [(["mistral"], 2, "--tiny shrinks the sizes"), (["no_such_type"], 1, "has no model_type 'no_such_type'")],
)
def test_what_transformers_cannot_make(arguments: list[str], code: int, message: str, tmp_path: Path) -> None:
    command = [str(PYTHON), "-m", "core.testing.reference", *arguments, str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False)
    assert message in done.stderr


def test_a_short_prompt_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="too short"):
        make_reference("nowhere", tmp_path, length=2)
