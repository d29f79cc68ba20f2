"""Rule 1: a claim is metadata. Whatever is installed, discovery imports nothing and survives what is damaged."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

import core
from core.errors import PluginError, UnknownModelTypeError
from core.registry import choose, claims, status
from tests.registry.children import child
from tests.registry.conftest import Install
from tests.registry.plugin_source import plugin_source
from tests.registry.wheels import Distribution

TELLTALE = "import builtins\nbuiltins.imported_by_discovery = True\n"


@pytest.mark.parametrize(
    ("requires", "fault"),
    [
        (["corelm>=99"], "it requires corelm>=99, and this is corelm"),
        (["numpy", "CoreLM [cpu] <0.0.1 ; python_version >= '3'"], "it requires CoreLM [cpu] <0.0.1 ; python_version"),
        (["corelm>=0", "corelm!=0,<0.0.1"], "it requires corelm!=0,<0.0.1"),
        (["corelm >> 1"], "its requirement 'corelm >> 1' is malformed"),
        (["corelm>=" + "9" * 5000], f"its requirement 'corelm>={'9' * 191}…' is malformed"),
        (["corelm; " + "(" * 2000], f"its requirement 'corelm; {'(' * 191}…' is malformed"),
        (["corelm>=0.0.1"], None),
        (["corelm>=99; python_version < '3'"], None),
        (["corelm>=99; extra == 'new'"], None),
        (["corelm @ https://example.org/corelm.whl"], None),
        (["corelm-tools>=99", "not >> a requirement", "corelm-x >> 1"], None),
        (["corelm-x; " + "(" * 2000], None),
        ([], None),
    ],
)
def test_a_requirement_on_corelm_is_checked_before_the_import(
    install: Install, requires: list[str], fault: str | None
) -> None:
    install(Distribution("oak", modules={"oak.py": TELLTALE}, claims={"oak": "oak"}, requires=requires))
    if fault is None:
        assert choose("oak").fault is None
    else:
        for plugin in (None, "oak"):
            with pytest.raises(PluginError) as caught:
                choose("oak", plugin)
            assert f"plugin oak 1.0 (entry point oak = oak) cannot be used: {fault}" in str(caught.value)
            assert "pip install --upgrade oak corelm" in str(caught.value)
        (found,) = [claim for claim in claims() if claim.model_type == "oak"]
        assert status(found, claims()).startswith(f"unusable: {fault}")
    assert "oak" not in sys.modules


@pytest.mark.parametrize("value", ["", "oak!", "oak mod", "oak:", ".oak", "oak..bark", ":x", "1oak", "oak:x:y"])
def test_a_malformed_value_is_a_fault_of_one_claim(install: Install, value: str) -> None:
    install(Distribution("oak", claims={"oak": value, "elm": "elm [extra]"}))
    with pytest.raises(PluginError, match=r"cannot be used: .* is neither a module's dotted path nor module:object"):
        choose("oak")
    assert choose("elm").target() == ("elm", "")


def _no_metadata(info: Path) -> None:
    (info / "METADATA").unlink()


def _no_name(info: Path) -> None:
    (info / "METADATA").write_text("Metadata-Version: 2.1\n")


def _no_equals_sign(info: Path) -> None:
    (info / "entry_points.txt").write_text("[core.architectures]\noak\n")


def _not_utf8(info: Path) -> None:
    (info / "entry_points.txt").write_bytes(b"[core.architectures]\n\xff = oak\n")


def _a_directory(info: Path) -> None:
    (info / "entry_points.txt").unlink()
    (info / "entry_points.txt").mkdir()


@pytest.mark.parametrize(("damage", "name"), [(_no_metadata, "rot-1.0.dist-info"), (_no_name, "rot-1.0.dist-info")])
def test_a_distribution_without_a_name_is_called_by_its_directory(
    install: Install, third_party: Callable[[str], Path], tmp_path: Path, damage: Callable[[Path], None], name: str
) -> None:
    install(Distribution("rot", modules={"rot.py": plugin_source()}, claims={"oak": "rot"}))
    damage(tmp_path / "sites" / "rot" / "rot-1.0.dist-info")
    claim = core.load(third_party("oak"), tokenizer=False).report.claim
    assert str(claim) == f"{name} (no version) (entry point oak = rot)"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("sugar-maple-1.0.dist-info", "sugar-pine-1.0.dist-info"),  # as old tools wrote them
        ("sugar_maple-1.0-py3.11.egg-info", "sugar_pine.egg-info"),
        ("sugar.maple-1!2.0.dist-info", "Sugar_Pine-2.dist-info"),
    ],
)
def test_directories_are_told_apart_by_the_distributions_names(
    install: Install, tmp_path: Path, one: str, other: str
) -> None:
    for name, directory in (("sugar-maple", one), ("sugar-pine", other)):
        install(Distribution(name, claims={name: "wood"}, requires=["corelm>=0.1"]))
        site = tmp_path / "sites" / name
        (site / f"{name.replace('-', '_')}-1.0.dist-info").rename(site / directory)
        if directory.endswith("egg-info"):
            (site / directory / "METADATA").rename(site / directory / "PKG-INFO")
    assert (choose("sugar-maple").distribution, choose("sugar-pine").version) == ("sugar-maple", "1.0")


def test_a_description_that_looks_like_a_header_is_none(install: Install, tmp_path: Path) -> None:
    install(Distribution("oak", claims={"oak": "oak"}))
    metadata = tmp_path / "sites" / "oak" / "oak-1.0.dist-info" / "METADATA"
    metadata.write_bytes(metadata.read_bytes() + b"\r\n\r\nRequires-Dist: corelm>=99\r\n")
    assert choose("oak").fault is None
    metadata.write_bytes(metadata.read_bytes().replace(b"\r\n\r\n", b"\n"))
    with pytest.raises(PluginError, match="it requires corelm>=99"):
        choose("oak")
    metadata.write_bytes(b"metadata-version: 2.1\nNAME: oak\nVersion: 2.0\nRequires-Dist: corelm\n  >=77\n")
    with pytest.raises(PluginError, match=r"oak 2\.0 .* it requires corelm >=77"):
        choose("oak")


@pytest.mark.parametrize("damage", [_no_equals_sign, _not_utf8])
def test_unreadable_entry_points_are_listed_and_hide_nobody_else(
    install: Install, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    install(Distribution("rot", claims={"oak": "rot"}), Distribution("fine", claims={"elm": "fine"}))
    damage(tmp_path / "sites" / "rot" / "rot-1.0.dist-info")
    assert choose("elm").distribution == "fine"
    (broken,) = [claim for claim in claims() if claim.distribution == "rot"]
    assert status(broken, claims()).startswith("unusable: its entry_points.txt cannot be read (")
    with pytest.raises(UnknownModelTypeError, match=r"rot 1\.0: its entry_points\.txt cannot be read"):
        choose("oak")


def test_an_entry_points_file_that_is_none_says_nothing(install: Install, tmp_path: Path) -> None:
    install(Distribution("rot", claims={"oak": "rot"}), Distribution("fine", claims={"elm": "fine"}))
    _a_directory(tmp_path / "sites" / "rot" / "rot-1.0.dist-info")
    assert [claim.distribution for claim in claims() if claim.model_type in ("oak", "elm")] == ["fine"]


def test_an_unknown_type_is_answered_with_the_ways_out(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install(
        Distribution("a-blocked", claims={"mistrel": "a_blocked"}),
        Distribution("too-new", claims={"olmo2": "too_new"}, requires=["corelm>=99"]),
    )
    monkeypatch.setenv("CORE_BLOCK_PLUGINS", "A_Blocked")
    with pytest.raises(UnknownModelTypeError) as caught:
        choose("mistrel")
    assert str(caught.value) == (
        "no installed plugin loads model_type 'mistrel' "
        "(found plugins for mistral, mistral3, mistrel, mixtral, olmo2)\n"
        "  a-blocked 1.0 (entry point mistrel = a_blocked) claims it, but is blocked by CORE_BLOCK_PLUGINS.\n"
        "  Did you mean 'mistral' or 'mistral3' or 'mixtral'?\n"
        "  Install a plugin for it (pip install corelm-mistrel, if someone published one), "
        "or write one: corelm new mistrel"
    )
    with pytest.raises(UnknownModelTypeError) as caught:
        choose("Gemma_9")
    assert "Did you mean" not in str(caught.value)
    assert "pip install corelm-gemma-9," in str(caught.value)
    monkeypatch.setattr(metadata, "distributions", lambda: iter(()))
    with pytest.raises(UnknownModelTypeError, match="no plugin at all") as caught:
        choose("mistral")
    assert "the package corelm is not installed (pip install -e .)" in str(caught.value)


@pytest.mark.parametrize(
    "listed", ["oak", " Forest-Plugins ,x", "forest_plugins.lm", "x,forest.plugins.lm:tree", "FOREST.PLUGINS"]
)
def test_the_block_list_works_before_the_import(
    install: Install, third_party: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, listed: str
) -> None:
    modules = {"forest_plugins/__init__.py": TELLTALE, "forest_plugins/lm.py": plugin_source(TELLTALE) + "tree = None"}
    install(Distribution("forest-plugins", modules=modules, claims={"oak": "forest_plugins.lm:tree"}))
    path = third_party("oak")
    monkeypatch.setenv("CORE_BLOCK_PLUGINS", listed)
    with pytest.raises(UnknownModelTypeError, match="claims it, but is blocked by CORE_BLOCK_PLUGINS"):
        core.load(path, tokenizer=False)
    with pytest.raises(PluginError, match=r"is blocked by CORE_BLOCK_PLUGINS="):
        core.load(path, tokenizer=False, plugin="forest-plugins")
    assert "forest_plugins" not in sys.modules


def test_what_the_block_list_does_not_reach(
    install: Install, third_party: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(Distribution("spare", modules={"spare.py": plugin_source()}))
    monkeypatch.setenv("CORE_BLOCK_PLUGINS", "oak,mixtral")
    path = third_party("oak")
    # A module that was asked for by name claims no type; an object has been imported already.
    assert core.load(path, tokenizer=False, plugin="spare").report.claim.tier == "explicit"
    core.register("oak", sys.modules["spare"])
    assert core.load(path, tokenizer=False).report.claim.tier == "registered"
    assert choose("mistral").tier == "builtin"
    with pytest.raises(UnknownModelTypeError):
        choose("mixtral")
    monkeypatch.setenv("CORE_BLOCK_PLUGINS", "spare")
    with pytest.raises(PluginError, match=r"plugin spare \(explicit\) is blocked by CORE_BLOCK_PLUGINS=spare"):
        choose("oak", "spare")
    assert core.load(path, tokenizer=False).report.claim.tier == "registered"


def test_a_hundred_distributions_are_discovered_from_their_metadata_alone(tmp_path: Path, mistral: Path) -> None:
    site = tmp_path / "site"
    for number in range(100):
        Distribution(
            f"many-{number}", modules={f"many_{number}.py": TELLTALE}, claims={f"type{number}": f"many_{number}"}
        ).install(site)
    for wheel in site.glob("*.whl"):
        wheel.unlink()
    facts = child(
        """
        import builtins, sys
        opened = []
        sys.addaudithook(lambda event, args: event == "open" and opened.append(str(args[0])))
        import core
        from core.registry import choose, claims
        del opened[:]
        found = claims()
        read = [name for name in opened if name.startswith(sys.argv[1])]
        claim = core.load(sys.argv[2], tokenizer=False).report.claim
        report(
            types=sorted(c.model_type for c in found),
            chosen=claim.value,
            imported=[name for name in sys.modules if name.startswith(("many_", "plugins.mixtral"))],
            ran=hasattr(builtins, "imported_by_discovery"),
            read=sorted({name.rpartition("/")[2] for name in read}),
            parsed=len([name for name in read if name.endswith("METADATA")]),
        )
        """,
        site,
        mistral,
        path=[site],
    )
    assert facts["types"] == sorted([f"type{number}" for number in range(100)] + ["mistral", "mistral3", "mixtral"])
    assert facts["chosen"] == "plugins.mistral"
    assert facts["imported"] == []
    assert not facts["ran"]
    assert facts["parsed"] == 100  # once each: reading is what discovery costs
    assert set(facts["read"]) == {"METADATA", "entry_points.txt", "requires.txt"}  # the last where metadata is an egg's
