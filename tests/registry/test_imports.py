"""Who imports whom: ``core`` no plugin and nothing heavy, plugins only what is public, nobody each other."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.registry.children import child
from tests.registry.conftest import ROOT
from tests.registry.public_api import MODULES as PUBLIC
from tests.registry.public_api import public_names
from tests.registry.wheels import Distribution

PLUGINS = ROOT / "plugins"
EXAMPLE = ROOT / "examples" / "corelm-olmo2" / "corelm_olmo2"
HEAVY = (
    "mlx",
    "numpy",
    "pydantic",
    "pluggy",
    "jinja2",
    "rich",
    "huggingface_hub",
    "tokenizers",
    "packaging",
    "plugins",
)
# Standard modules that cost as much as all of Python's start and that nothing at the top of ``core`` needs.
SLOW = ("asyncio", "email", "inspect", "importlib.metadata", "unittest", "urllib.request", "ssl")


def test_importing_core_is_cheap_and_a_load_imports_only_what_it_needs(
    tmp_path: Path, mistral: Path, mixtral: Path
) -> None:
    site = Distribution("third", modules={"third.py": ""}, claims={"oak": "third", "mistral": "third"}).install(
        tmp_path
    )
    facts = child(
        """
        import sys
        before = set(sys.modules)
        import core
        cheap = sorted(set(sys.modules) - before)
        core.load(sys.argv[1], tokenizer=False)
        after_mistral = sorted(sys.modules)
        core.load(sys.argv[2], tokenizer=False)
        report(cheap=cheap, after_mistral=after_mistral, after_mixtral=sorted(sys.modules))
        """,
        mistral,
        mixtral,
        path=[site],
    )
    assert "core" in facts["cheap"]
    assert not imported(facts["cheap"], *HEAVY, *SLOW)
    assert [name for name in facts["cheap"] if name.startswith("core.")] == ["core.version"]
    assert len(facts["cheap"]) < 40
    assert "plugins.mistral" in facts["after_mistral"]
    unneeded = ("plugins.mixtral", "third", "jinja2", "rich", "huggingface_hub", "tokenizers", "packaging")
    assert not imported(facts["after_mistral"], *unneeded)
    assert "plugins.mixtral" in facts["after_mixtral"]
    assert not imported(facts["after_mixtral"], *unneeded[1:])


def imported(modules: list[str], *names: str) -> list[str]:
    """Those of the modules that are one of ``names``, or within."""
    return [module for module in modules if module.startswith(tuple(f"{name}." for name in names)) or module in names]


def imports_of(file: Path) -> Iterator[tuple[str, str | None]]:
    """Module and name of every import in a file, absolute; the name is None where the module itself is imported."""
    package = file.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            yield from ((module, alias.name) for alias in node.names)


def files(directory: Path) -> list[Path]:
    found = sorted(directory.rglob("*.py"))
    assert found
    return found


@pytest.mark.parametrize("file", files(PLUGINS) + files(EXAMPLE), ids=lambda file: str(file.relative_to(ROOT)))
def test_plugins_import_only_public_names_of_core_and_never_each_other(file: Path) -> None:
    own = ".".join(file.relative_to(ROOT).parts[:2])
    for module, name in imports_of(file):
        if module == "plugins" or module.startswith("plugins."):
            assert module == own or module.startswith(f"{own}."), f"imports {module}"
        if module == "core" or module.startswith("core."):
            assert module in PUBLIC, f"imports {module}"
            if name is not None:
                assert name in public_names(module) or f"{module}.{name}" in PUBLIC, f"{module}.{name}"
                assert not name.startswith("_")


def test_the_modules_that_plugins_may_import_say_what_is_public() -> None:
    for module in PUBLIC:
        public, names = importlib.import_module(module), public_names(module)
        assert names
        assert not [name for name in names if name.startswith("_") and name != "__version__"]
        assert all(hasattr(public, name) for name in names)


def test_core_imports_no_plugin_by_name() -> None:
    for file in files(ROOT / "core"):
        for module, name in imports_of(file):
            assert module.partition(".")[0] != "plugins", f"{file} imports {module}"
            assert not name or not f"{module}.{name}".startswith("core.registry.own."), (
                f"{file} imports {module}.{name}"
            )
        for call in ast.walk(ast.parse(file.read_text())):
            if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("import_module"):
                literal = isinstance(call.args[0], ast.Constant | ast.JoinedStr)
                assert not literal or "plugins" not in ast.unparse(call.args[0]), f"{file}: {ast.unparse(call)}"
