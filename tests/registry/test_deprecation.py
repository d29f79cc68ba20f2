"""What core will remove one day works until then, and a plugin that implements it is named."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

import core
from core import hookspecs
from core.registry import contract
from tests.registry.conftest import Install
from tests.registry.plugin_source import plugin_source
from tests.registry.wheels import Distribution

INDEXED = "\n\n@hookimpl\ndef build_block(config, index):\n    return Block(config.hidden_size)\n"
ADVICE = "return a CacheSpec from build_block; it works until PLUGIN_API 2.0"


@pytest.fixture
def oak(install: Install, third_party: Callable[[str], Path]) -> Path:
    """A checkpoint whose plugin implements ``make_cache``, and ``build_block`` with its argument ``index``."""
    source = plugin_source(build_block=INDEXED)
    install(Distribution("old-oak", modules={"old_oak.py": source}, claims={"oak": "old_oak"}))
    return third_party("oak")


@pytest.mark.parametrize(("key", "what"), [("make_cache", "the hook make_cache"), ("build_block.index", "'index' of")])
def test_the_warning_names_the_plugin_and_its_line(
    oak: Path, mistral: Path, monkeypatch: pytest.MonkeyPatch, key: str, what: str
) -> None:
    monkeypatch.setitem(hookspecs.DEPRECATED, key, ADVICE)
    with pytest.warns(FutureWarning) as caught:
        lm = core.load(oak, tokenizer=False)
    assert lm.report.claim.distribution == "old-oak"  # and it still works
    (warning,) = caught
    assert str(warning.message).startswith(f"plugin old-oak 1.0 (entry point oak = old_oak) implements {what}")
    assert str(warning.message).endswith(f"which is deprecated: {ADVICE}")
    assert Path(warning.filename).name == "old_oak.py"
    hook = key.partition(".")[0]
    lines = Path(warning.filename).read_text().splitlines()
    assert lines[warning.lineno - 1 : warning.lineno + 1][0] == "@hookimpl"
    assert lines[warning.lineno].startswith(f"def {hook}(")
    core.load(mistral, tokenizer=False)  # which implements neither, and core's own defaults are not blamed for theirs


def test_nothing_is_deprecated_by_accident(oak: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {key.partition(".")[0] for key in hookspecs.DEPRECATED} <= set(contract.HOOKS)
    monkeypatch.setitem(hookspecs.DEPRECATED, "build_block.config_of_old", ADVICE)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        core.load(oak, tokenizer=False)
    assert not [one for one in caught if "deprecated" in str(one.message)]
