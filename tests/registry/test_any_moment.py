"""Rule 4, at every moment: whichever call of a hook fails, the error names the plugin, and nothing else is hurt."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import core
from core.errors import PluginError
from core.registry import claims, status
from core.registry.contract import HOOKS
from tests.registry import checkpoints
from tests.registry.conftest import Install
from tests.registry.plugin_source import HEADER
from tests.registry.plugin_source import HOOKS as SOURCES
from tests.registry.wheels import Distribution

NAMED = "plugin brittle-oak 1.0 (entry point oak = brittle_oak) failed in its hook {hook}: "
SIZE, LAYERS = 32, 3
SOURCE = """
calls, breaks = [], {}

def called(hook):
    calls.append(hook)
    if (hook, calls.count(hook)) in breaks:
        raise breaks[hook, calls.count(hook)]

class Mute(Exception):
    def __str__(self):
        raise ValueError("no words")
"""
FURTHER = {
    "build_model": "@hookimpl(tryfirst=True)\ndef build_model(): return None\n",
    "quantize_module": "@hookimpl\ndef quantize_module(): return None\n",
    "model_loaded": "@hookimpl\ndef model_loaded(): return None\n",
}
Moment = Callable[[Path, Path], object]
MOMENTS: dict[str, Moment] = {
    "load_config": lambda path, out: core.load_config(path),
    "plan": lambda path, out: core.plan(path, quantize=4),
    "load": lambda path, out: core.load(path, tokenizer=False),
    "load lazily": lambda path, out: core.load(path, tokenizer=False, lazy=True),
    "quantize": lambda path, out: core.load(path, tokenizer=False, quantize=4),
    "save": lambda path, out: core.save(core.load(path, tokenizer=False), out),
    "convert": lambda path, out: core.convert(path, out, quantize=4),
}


@pytest.fixture
def oak(install: Install, tmp_path: Path) -> Path:
    """A checkpoint whose plugin counts the calls of its hooks, and fails in those that a test names."""
    sources = {**SOURCES, **FURTHER}
    assert sources.keys() == set(HOOKS)
    body = "".join(_counted(hook, source) for hook, source in sources.items())
    install(
        Distribution("brittle-oak", modules={"brittle_oak.py": SOURCE + HEADER + body}, claims={"oak": "brittle_oak"})
    )
    config = {"model_type": "oak", "hidden_size": SIZE, "num_hidden_layers": LAYERS, "vocab_size": 64}
    shapes: dict[str, tuple[int, ...]] = {"embed": (64, SIZE), "norm": (SIZE,), "head": (64, SIZE)}
    shapes |= {f"blocks.{layer}": (SIZE, SIZE) for layer in range(LAYERS)}
    return checkpoints.write(tmp_path / "oak", config, shapes)


def _counted(hook: str, source: str) -> str:
    start = source.index(":", source.index("def ")) + 1
    return f"{source[:start]}\n    called({hook!r})\n    {source[start:].lstrip()}"


def breakable(path: Path) -> Any:
    """The plugin's module, imported."""
    core.load_config(path)
    module: ModuleType = sys.modules["brittle_oak"]
    module.calls.clear()
    return module


def check_that_all_is_well(path: Path, mistral: Path) -> None:
    found = claims()
    assert {status(claim, found) for claim in found} == {"active"}
    for each in (path, mistral):
        assert core.load(each, tokenizer=False).report.plan.ok


@pytest.mark.parametrize("moment", MOMENTS)
def test_every_call_of_every_hook(oak: Path, mistral: Path, tmp_path: Path, moment: str) -> None:
    plugin = breakable(oak)
    MOMENTS[moment](oak, tmp_path / "whole")
    counted = {hook: plugin.calls.count(hook) for hook in HOOKS if hook in plugin.calls}
    assert "parse_config" in counted
    for hook, count in counted.items():
        for call in range(1, count + 1):
            plugin.calls.clear()
            plugin.breaks = {(hook, call): RuntimeError("snap")}
            out = tmp_path / f"{hook}{call}"
            with pytest.raises(PluginError) as caught:
                MOMENTS[moment](oak, out)
            assert NAMED.format(hook=hook) + "RuntimeError: snap" in str(caught.value)
            assert not out.exists()
            plugin.breaks = {}
    check_that_all_is_well(oak, mistral)


def test_every_hook_has_its_moment(oak: Path, tmp_path: Path) -> None:
    plugin = breakable(oak)
    MOMENTS["quantize"](oak, tmp_path)
    assert set(plugin.calls) == set(HOOKS)


ERRORS = ("SystemExit(2)", "GeneratorExit()", "StopIteration(1)", "BaseException('x')", "MemoryError()", "Mute()")
GROUPS = ("ExceptionGroup('x', [ValueError('y')])", "BaseExceptionGroup('x', [SystemExit(1)])", "FutureWarning('x')")


@pytest.mark.parametrize("error", [*ERRORS, *GROUPS, "RecursionError()", "ImportError('x')", "OSError(28, 'full')"])
def test_every_kind_of_error(oak: Path, mistral: Path, error: str) -> None:
    plugin = breakable(oak)
    raised = eval(error, vars(plugin))
    for hook in HOOKS:
        plugin.calls.clear()
        plugin.breaks = {(hook, 1): raised}
        with pytest.raises(PluginError) as caught:
            core.load(oak, tokenizer=False, quantize=4)
        assert NAMED.format(hook=hook) + error.partition("(")[0] in str(caught.value)
        assert caught.value.__cause__ is raised
    plugin.breaks = {}
    check_that_all_is_well(oak, mistral)


@pytest.mark.parametrize("hook", HOOKS)
def test_ctrl_c_stays_ctrl_c(oak: Path, mistral: Path, hook: str) -> None:
    plugin = breakable(oak)
    plugin.breaks = {(hook, 1): KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        core.load(oak, tokenizer=False, quantize=4)
    plugin.breaks = {}
    check_that_all_is_well(oak, mistral)
