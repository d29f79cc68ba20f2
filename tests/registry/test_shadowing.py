"""A foreign ``plugins`` on the path neither breaks the built-in plugins nor is broken, nor run, by them."""

from __future__ import annotations

import os
import sysconfig
import textwrap
from pathlib import Path

import pytest

from tests.registry.children import child
from tests.registry.conftest import ROOT
from tests.registry.wheels import unpack

RUNS = "import builtins\nbuiltins.foreign_ran = True\nmine = 'theirs'\n"
# Without site, no .pth file puts this project's directory on the path: only what a test puts there is on it.
BARE = ("-S", "-W", "error")
PURELIB = Path(sysconfig.get_path("purelib"))

LOAD_BOTH = """
import builtins, os, pickle, sys
import core
own = {}
for path in sys.argv[1:3]:
    lm = core.load(path, tokenizer=False)
    claim = lm.report.claim
    assert (claim.tier, claim.value) == ("builtin", f"plugins.{lm.config.model_type}"), claim
    assert pickle.loads(pickle.dumps(lm.config)) == lm.config
    own[lm.config.model_type] = sys.modules[type(lm.config).__module__].__file__
ran = hasattr(builtins, "foreign_ran")
open(sys.argv[3], "wb").write(pickle.dumps(lm.config))
"""
THEIRS = """
import plugins
report(ran=ran, theirs=plugins.mine, file=plugins.__file__, own=own, core=core.__file__)
"""


@pytest.fixture(scope="session")
def wheel_site(own_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the project installed from its wheel."""
    site = tmp_path_factory.mktemp("site")
    unpack(own_wheel, site)
    return site


@pytest.fixture(params=["editable", "wheel"])
def home(request: pytest.FixtureRequest) -> Path:
    """The directory in which ``core`` lies."""
    return ROOT if request.param == "editable" else request.getfixturevalue("wheel_site")


def foreign(directory: Path, kind: str) -> Path:
    """A directory with somebody else's ``plugins``, a package or a module, or a package of ours' very names."""
    directory.mkdir()
    if kind == "module":
        (directory / "plugins.py").write_text(RUNS)
    else:
        (directory / "plugins").mkdir()
        (directory / "plugins" / "__init__.py").write_text(RUNS)
        (directory / "plugins" / "mistral.py").write_text(RUNS)
    return directory


@pytest.mark.parametrize("kind", ["package", "module"])
@pytest.mark.parametrize("place", ["before", "behind"])
def test_a_foreign_plugins_package_or_module(
    tmp_path: Path, mistral: Path, mixtral: Path, home: Path, kind: str, place: str
) -> None:
    theirs = foreign(tmp_path / "theirs", kind)
    path = [theirs, home, PURELIB] if place == "before" else [home, theirs, PURELIB]
    facts = child(LOAD_BOTH + THEIRS, mistral, mixtral, tmp_path / "pickle", path=path, options=BARE)
    assert not facts["ran"]
    assert facts["theirs"] == "theirs"
    assert facts["file"].startswith(str(theirs))
    assert facts["core"] == str(home / "core" / "__init__.py")
    for model_type in ("mistral", "mixtral"):
        assert facts["own"][model_type] == str(home / "plugins" / model_type / "config.py")


def test_a_foreign_package_unpacked_into_the_very_same_directory(
    tmp_path: Path, mistral: Path, mixtral: Path, own_wheel: Path
) -> None:
    site = tmp_path / "site"
    unpack(own_wheel, site)
    (site / "plugins" / "__init__.py").write_text(RUNS)
    facts = child(LOAD_BOTH + THEIRS, mistral, mixtral, tmp_path / "pickle", path=[site, PURELIB], options=BARE)
    assert not facts["ran"]
    assert facts["theirs"] == "theirs"


def test_a_foreign_namespace_package_with_ours_names_and_one_that_is_imported_already(
    tmp_path: Path, mistral: Path, mixtral: Path, wheel_site: Path
) -> None:
    for name in ("mistral/__init__.py", "mixtral.py", "own_thing.py"):
        file = tmp_path / "theirs" / "plugins" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(
            "import builtins\nbuiltins.foreign_ran = True\n" if name != "own_thing.py" else "mine = 'theirs'\n"
        )
    path = [tmp_path / "theirs", wheel_site, PURELIB]
    facts = child(
        LOAD_BOTH + "import plugins.own_thing\nreport(ran=ran, own=own, theirs=plugins.own_thing.mine)\n",
        *(mistral, mixtral, tmp_path / "pickle"),
        path=path,
        options=BARE,
    )
    assert not facts["ran"]
    assert facts["theirs"] == "theirs"
    assert facts["own"]["mixtral"] == str(wheel_site / "plugins" / "mixtral" / "config.py")
    first = "import builtins, plugins.mistral\ndel builtins.foreign_ran\n" + LOAD_BOTH + "report(ran=ran, own=own)\n"
    facts = child(first, mistral, mixtral, tmp_path / "pickle", path=path, options=BARE)
    assert not facts["ran"]
    assert facts["own"]["mistral"] == str(wheel_site / "plugins" / "mistral" / "config.py")


def test_python_run_where_somebody_keeps_plugins_and_unpickled_where_nobody_does(
    tmp_path: Path, mistral: Path, mixtral: Path, wheel_site: Path
) -> None:
    theirs = foreign(tmp_path / "theirs", "package")
    pickled = tmp_path / "pickle"
    # As with ``python -m``, the working directory is first on the path.
    facts = child(LOAD_BOTH + THEIRS, mistral, mixtral, pickled, path=[wheel_site, PURELIB], options=BARE, cwd=theirs)
    assert not facts["ran"]
    assert facts["file"].endswith(f"plugins{os.sep}__init__.py")
    unpickle = """
    import pickle, sys
    config = pickle.load(open(sys.argv[1], "rb"))
    report(model_type=config.model_type, file=sys.modules[type(config).__module__].__file__)
    """
    facts = child(unpickle, pickled, path=[wheel_site, PURELIB], options=BARE)
    assert facts == {"model_type": "mixtral", "file": str(wheel_site / "plugins" / "mixtral" / "config.py")}


def test_where_nobody_shadows_them_they_are_importable_by_their_own_names(
    tmp_path: Path, mistral: Path, mixtral: Path, home: Path
) -> None:
    same = """
    import plugins.mistral.config, plugins.mixtral.config
    report(same=type(lm.config) is plugins.mixtral.config.MixtralConfig, namespace=plugins.__file__)
    """
    code = LOAD_BOTH + textwrap.dedent(same)
    facts = child(code, mistral, mixtral, tmp_path / "pickle", path=[home, PURELIB], options=BARE)
    assert facts == {"same": True, "namespace": None}


def test_a_damaged_installation_says_so(tmp_path: Path, mistral: Path, mixtral: Path, own_wheel: Path) -> None:
    site = tmp_path / "site"
    unpack(own_wheel, site)
    (site / "plugins" / "mistral" / "block.py").write_text("import absent\n")
    (site / "plugins" / "mixtral" / "config.py").unlink()
    code = """
    import sys, core
    messages = []
    for path in sys.argv[1:]:
        try:
            core.load(path, tokenizer=False)
        except core.errors.PluginError as error:
            messages.append(str(error))
    report(messages=messages)
    """
    facts = child(code, mistral, mixtral, path=[site, PURELIB], options=BARE)
    for message, kind, missing in zip(
        facts["messages"], ("mistral", "mixtral"), ("absent", "plugins.mixtral.config"), strict=True
    ):
        assert f"(entry point {kind} = plugins.{kind}) cannot be imported: ModuleNotFoundError" in message
        assert f"No module named '{missing}'" in message
        assert "pip install --force-reinstall corelm" in message
