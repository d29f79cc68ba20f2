"""``corelm inspect --plugins``: every claim, whether it serves, and what a broken plugin does to the list: nothing."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest

import core
from core.cli.environment import Environment
from core.cli.locate import locate
from core.cli.plugins import ClaimFacts
from core.cli.probe import probe
from core.device import describe
from core.registry import Claim, claims
from tests.cli.conftest import ROOT, Run
from tests.cli.packages import SOUND, install

BROKEN = {
    "corelm-exits": ("exits", "import sys; sys.exit(3)", "SystemExit: 3"),
    "corelm-dies": ("dies", "import os; os._exit(7)", "exit code 7"),
    "corelm-raises": ("raises", "raise ValueError('no \\x1b[1mway')", r"ValueError: no \x1b[1mway"),
    "corelm-empty": ("empty", "", "lacks the required hooks"),
}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory on the path, for packages."""
    directory = tmp_path / "site"
    directory.mkdir()
    monkeypatch.syspath_prepend(str(directory))
    return directory


def listed(corelm: Run, *arguments: str) -> dict[str, Any]:
    outcome = corelm("inspect", "--plugins", "--json", *arguments)
    assert (outcome.code, outcome.err) == (0, "")
    found: dict[str, Any] = json.loads(outcome.out)
    return found


def by_type(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {claim["model_type"]: claim for claim in found["claims"]}


def test_json_is_the_documented_object(corelm: Run) -> None:
    found = listed(corelm)
    assert found.keys() == {"schema", "environment", "claims"}
    assert found["environment"].keys() == {field.name for field in dataclasses.fields(Environment)}
    assert found["environment"]["core"] == core.__version__
    assert found["environment"]["plugin_api"] == core.PLUGIN_API
    mixtral = by_type(found)["mixtral"]
    assert mixtral.keys() == {field.name for field in dataclasses.fields(ClaimFacts)}
    assert (mixtral["tier"], mixtral["distribution"], mixtral["status"]) == ("builtin", "corelm", "active")
    assert Path(mixtral["file"]) == ROOT / "plugins/mixtral/__init__.py"
    assert (mixtral["seconds"], mixtral["error"]) == (None, None)


def test_listing_imports_nothing(corelm: Run, site: Path, tmp_path: Path) -> None:
    mark = f"open({str(tmp_path / 'imported')!r}, 'w')"
    install(site, "corelm-marked", {"marked": "marked.inner"}, {"marked/__init__.py": mark, "marked/inner.py": mark})
    claim = by_type(listed(corelm))["marked"]
    assert claim["status"] == "active"
    assert Path(claim["file"]) == site / "marked/inner.py"
    assert not (tmp_path / "imported").exists()


def test_imports_are_timed_and_a_broken_plugin_is_a_line(corelm: Run, site: Path) -> None:
    install(site, "corelm-sound", {"sound": "sound_plugin"}, {"sound_plugin.py": SOUND})
    for name, (module, source, _) in BROKEN.items():
        install(site, name, {module: f"{module}_plugin"}, {f"{module}_plugin.py": source})
    found = by_type(listed(corelm, "--import"))
    assert found.keys() == {"mistral", "mistral3", "mixtral", "sound", *(module for module, _, _ in BROKEN.values())}
    for model_type in ("mistral", "mistral3", "mixtral", "sound"):
        assert found[model_type]["error"] is None
        assert 0 < found[model_type]["seconds"] < 30
    for module, _, says in BROKEN.values():
        assert found[module]["seconds"] is None
        assert says.replace(r"\x1b", "\x1b") in found[module]["error"]


def test_the_text_says_the_same(corelm: Run, site: Path) -> None:
    module, source, says = BROKEN["corelm-raises"]
    install(site, "corelm-raises", {module: "raises_plugin"}, {"raises_plugin.py": source})
    outcome = corelm("inspect", "--plugins", "--import")
    assert (outcome.code, outcome.err) == (0, "")
    versions, machine, *_ = outcome.out.splitlines()
    assert versions.startswith(f"core {core.__version__}, plugin API {core.PLUGIN_API}, MLX ")
    assert machine.endswith(describe())
    lines = [line.split() for line in outcome.out.splitlines()]
    assert ["TYPE", "TIER", "PACKAGE", "VERSION", "MODULE", "IMPORT", "STATUS"] in lines
    row = lines.index(["raises", "installed", "corelm-raises", "1.0", "raises_plugin", "failed", "active"])
    assert lines[row + 1] == [str(site / "raises_plugin.py")]
    assert lines[row + 2][0] == "error:"
    assert says in outcome.out
    assert "\x1b" not in outcome.out


def test_a_plugin_that_never_ends(site: Path) -> None:
    install(site, "corelm-hangs", {"hangs": "hangs_plugin"}, {"hangs_plugin.py": "import time; time.sleep(600)"})
    (claim,) = (claim for claim in claims() if claim.model_type == "hangs")
    outcome = probe(claim, timeout=2)
    assert outcome.error == "importing it did not end within 2 seconds"


def test_blocked_is_not_imported(corelm: Run, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = f"open({str(tmp_path / 'imported')!r}, 'w')"
    install(site, "corelm-marked", {"marked": "marked_plugin"}, {"marked_plugin.py": source})
    monkeypatch.setenv("CORE_BLOCK_PLUGINS", "corelm-marked")
    monkeypatch.setenv("CORE_PLUGIN", "mistral=other\x1b[1m")
    outcome = corelm("inspect", "--plugins", "--import")
    assert "blocked by CORE_BLOCK_PLUGINS" in outcome.out
    assert "\nCORE_BLOCK_PLUGINS=corelm-marked\n" in outcome.out
    assert "\nCORE_PLUGIN=mistral=other\\x1b[1m\n" in outcome.out
    assert not (tmp_path / "imported").exists()


def test_why_a_claim_does_not_serve(corelm: Run, site: Path) -> None:
    files = {"a_plugin.py": SOUND, "b_plugin.py": SOUND}
    install(site, "corelm-a", {"contested": "a_plugin", "mistral": "a_plugin"}, files)
    install(site, "corelm-b", {"contested": "b_plugin", "old": "gone_plugin"}, {}, requires="corelm<0.0.1")
    found = [(one["model_type"], one["distribution"], one["status"]) for one in listed(corelm)["claims"]]
    status = {(model_type, distribution): text for model_type, distribution, text in found}
    assert status["mistral", "corelm-a"].startswith("shadowed by corelm ")
    assert status["contested", "corelm-a"].startswith("in conflict with corelm-b 1.0")
    assert status["old", "corelm-b"].startswith("unusable: it requires corelm<0.0.1")
    assert by_type(listed(corelm))["old"]["file"] is None


def test_where_a_module_would_come_from(site: Path) -> None:
    (site / "package").mkdir()
    (site / "package/__init__.py").write_text("raise AssertionError('imported')")
    (site / "package/inner.py").write_text("")
    assert locate(Claim("x", "installed", "package.inner:thing", "p", "1")) == site / "package/inner.py"
    assert locate(Claim("x", "installed", "package", "p", "1")) == site / "package/__init__.py"
    for value in ("package.absent", "absent.inner", "not a module", "sys"):
        assert locate(Claim("x", "installed", value, "p", "1")) is None
    assert locate(Claim("x", "registered", "tests", plugin=pytest)) == Path(pytest.__file__)


def test_a_foreign_package_called_plugins_is_not_taken_for_ours(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (site / "plugins").mkdir()
    (site / "plugins/__init__.py").write_text("")
    (site / "plugins/mistral.py").write_text("")
    monkeypatch.delitem(sys.modules, "plugins", raising=False)
    (claim,) = (claim for claim in claims() if claim.model_type == "mistral")
    assert locate(claim) == ROOT / "plugins/mistral/__init__.py"


@pytest.mark.parametrize("arguments", [("--plugins", "x"), ("--plugins", "--keys"), ("--import", "x"), ()])
def test_options_that_contradict_each_other(corelm: Run, arguments: tuple[str, ...]) -> None:
    outcome = corelm("inspect", *arguments)
    assert (outcome.code, outcome.out) == (2, "")
