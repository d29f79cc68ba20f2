"""A damaged package that has nothing to do with core stops no load, though pydantic reads its metadata as well."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.registry.children import child
from tests.registry.wheels import Distribution

LOAD = """
    import sys, warnings
    import core
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = core.load(sys.argv[1], tokenizer=False)
        core.load(sys.argv[1], tokenizer=False)
    report(plugin=model.report.claim.value, said=[str(warning.message) for warning in caught])
"""


def _not_utf8(info: Path) -> None:
    (info / "entry_points.txt").write_bytes("[console_scripts]\ncafé = rot:main\n".encode("latin-1"))


def _no_equals_sign(info: Path) -> None:
    (info / "entry_points.txt").write_text("[console_scripts]\nrot\n")


def _a_link_to_itself(info: Path) -> None:
    (info / "entry_points.txt").unlink(missing_ok=True)
    (info / "entry_points.txt").symlink_to("entry_points.txt")


def _all_of_it_a_link_to_itself(info: Path) -> None:
    info.rename(info.with_name("moved"))
    info.symlink_to(info.name)


@pytest.mark.parametrize("damage", [_not_utf8, _no_equals_sign, _a_link_to_itself, _all_of_it_a_link_to_itself])
def test_metadata_that_cannot_be_read(tmp_path: Path, mistral: Path, damage: Callable[[Path], None]) -> None:
    site = Distribution("rot").install(tmp_path / "site")
    info = site / "rot-1.0.dist-info"
    damage(info)
    facts = child(LOAD, mistral, path=[site])
    assert facts["plugin"] == "plugins.mistral"
    (said,) = facts["said"]
    assert said.startswith(f"pydantic cannot load its plugins, because the metadata of {info} cannot be read (")


def test_a_plugin_of_pydantics_that_fails(tmp_path: Path, mistral: Path) -> None:
    plugin = Distribution(
        "watcher",
        modules={"watcher.py": "raise RuntimeError('no licence')"},
        entry_points="[pydantic]\nw = watcher:w\n",
    )
    facts = child(LOAD, mistral, path=[plugin.install(tmp_path / "site")])
    assert facts["plugin"] == "plugins.mistral"
    (said,) = facts["said"]
    assert "because one of them fails (RuntimeError: no licence); models load all the same" in said


def test_a_plugin_of_pydantics_that_works_is_loaded_without_a_word(tmp_path: Path, mistral: Path) -> None:
    source = "class Watcher:\n    def new_schema_validator(self, *args): return None, None, None\nw = Watcher()\n"
    plugin = Distribution("watcher", modules={"watcher.py": source}, entry_points="[pydantic]\nw = watcher:w\n")
    code = LOAD.replace("report(", "report(loaded='watcher' in sys.modules, ")
    facts = child(code, mistral, path=[plugin.install(tmp_path / "site")])
    assert facts == {"plugin": "plugins.mistral", "said": [], "loaded": True}
