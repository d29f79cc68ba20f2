"""Within one plugin API, what plugins use is only added to."""

from __future__ import annotations

import json

import core
from tests.registry.conftest import ROOT
from tests.registry.public_api import Surface, surface

RECORDED = json.loads((ROOT / "tests" / "data" / "plugin_api.json").read_text())
ADVICE = (
    "CONTRIBUTING.md, 'API stability', says when this may be. Where it may: "
    "python -m tests.registry.public_api > tests/data/plugin_api.json"
)


def broken(old: Surface, new: Surface) -> list[str]:
    """What a plugin written for the old one would miss in the new one."""
    faults = [f"{name} is gone" for name in old if name not in new]
    for name in old.keys() & new.keys():
        before, after = old[name].split(), new[name].split()
        given, taken = ([parameter.removesuffix("!") for parameter in each] for each in (before, after))
        faults += [f"{name} takes no {parameter}" for parameter in given if parameter not in taken]
        faults += [f"{name} demands {one}" for one in after if one.endswith("!") and one not in before]
        if [parameter for parameter in taken if parameter in given] != [one for one in given if one in taken]:
            faults.append(f"{name} takes its parameters in another order")
    return sorted(faults)


def test_nothing_that_plugins_use_is_gone() -> None:
    assert RECORDED["PLUGIN_API"] == core.PLUGIN_API, ADVICE
    assert broken(RECORDED["surface"], surface()) == [], ADVICE


def test_the_version_of_core_says_the_plugin_api() -> None:
    major, minor, *_ = core.__version__.split(".")
    expected = f"0.{minor}" if major == "0" else major
    assert expected == core.PLUGIN_API or core.PLUGIN_API.startswith(f"{expected}.")


def test_what_counts_as_broken() -> None:
    old = {"f": "a! b", "gone": ""}
    assert broken(old, {"f": "a! b c", "gone": "", "new": "x!"}) == []
    assert broken(old, {"f": "a b", "gone": ""}) == []
    assert broken(old, {"f": "b a!"}) == ["f takes its parameters in another order", "gone is gone"]
    assert broken(old, {"f": "a! c!", "gone": ""}) == ["f demands c!", "f takes no b"]
    assert broken(old, {"f": "a! b!", "gone": ""}) == ["f demands b!"]
