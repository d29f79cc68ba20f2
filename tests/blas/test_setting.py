"""``CORE_BLAS``, and all else for which MLX keeps its own library: its products are right, and the reason is said.

Each test has a process of its own, because a process binds once.
"""

from __future__ import annotations

import _ctypes
from pathlib import Path

import pytest

import core
from tests.blas.process import LIBRARY, PRODUCT, needs_library
from tests.registry.children import child

pytestmark = needs_library
ROOT = Path(core.__file__).parents[1]


def test_off() -> None:
    facts = child(
        f"{PRODUCT}\nimport core.nn\nfrom core import blas\nblas.check()\n"
        "report(status=status(), right=product(), mapped=mapped('openblas'))",
        environment={"CORE_BLAS": "off"},
    )
    assert facts["status"] == [
        False,
        "MLX's own, on one thread and slow: the environment variable CORE_BLAS is off",
    ]
    assert facts["right"]
    assert not facts["mapped"]


@pytest.mark.parametrize("relative", [False, True])
def test_a_library_by_its_path(relative: bool, tmp_path: Path) -> None:
    library = tmp_path / "libother.so"
    library.symlink_to(LIBRARY or "")
    facts = child(
        f"{PRODUCT}\nimport core.nn\nfrom core import blas\nblas.check()\n"
        "report(path=blas.bind().path, right=product())",
        environment={"CORE_BLAS": library.name if relative else str(library)},
        path=[ROOT],
        cwd=tmp_path,
    )
    assert facts == {"path": str(library), "right": True}


@pytest.mark.parametrize("kind", ["absent", "text", "without products", "a word"])
def test_a_bad_path_is_an_error_at_first_use_and_never_at_import(kind: str, tmp_path: Path) -> None:
    path, said = str(tmp_path / "libblas.so"), "is no file"
    if kind == "text":
        Path(path).write_text("no library")
        said = "cannot be loaded"
    elif kind == "without products":
        path = _ctypes.__file__
        said = "has no function cblas_sgemm"
    elif kind == "a word":
        path = "fast"
    facts = child(
        f"""{PRODUCT}
import contextlib, io
import core.nn
from core.cli import main
from core.errors import UsageError
try:
    core.load("demo:mistral", tokenizer=False)
except UsageError as error:
    said = str(error)
def run(*arguments):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    return [code, err.getvalue()]
report(said=said, right=product(), inspect=run("inspect", "demo:mistral"), status=status())
""",
        environment={"CORE_BLAS": path},
    )
    assert facts["right"]
    assert facts["status"][0] is False
    assert facts["said"].startswith("the environment variable CORE_BLAS names no library that can be used (found ")
    assert said in facts["said"]
    code, err = facts["inspect"]
    assert code == 2
    assert facts["said"] in err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("binding.packaged = lambda: None", "the package scipy-openblas32 is not installed. Install it: pip install"),
        ("import sys; sys.modules['scipy_openblas32'] = None", "the package scipy-openblas32 is not installed"),
        ("binding.packaged = lambda: 1 / 0", "no other can be put in its place (ZeroDivisionError: "),
        ("library.multiplies = lambda name, function: name != 'cblas_cgemm'", "cblas_cgemm computes a wrong product"),
        ("binding.Imports.slots = lambda self, names: {}", "it does not call cblas_sgemm"),
        ("binding.Memory.is_code = lambda self, address: False", "is not the address of a function"),
    ],
)
def test_in_doubt_mlx_keeps_its_own(change: str, words: str) -> None:
    facts = child(
        f"""{PRODUCT}
from core.blas import binding, library
import mlx.core
{change}
import core.nn
from core import blas
blas.check()
report(status=status(), right=product())
"""
    )
    used, text = facts["status"]
    assert not used
    assert words in text
    assert facts["right"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("binding.Memory.files = lambda self, name: {'/a', '/b'}", "2 of MLX's library libmlx.so are loaded"),
        ("binding._has_gpu = lambda: True", "MLX computes on a GPU"),
        ("binding._GPU_LIBRARIES = ('libblas',)", "MLX computes on a GPU"),
        ("binding.sys = type('', (), {'platform': 'darwin'})", "this is not Linux"),
        ("binding.os.confstr = lambda name: None", "without the GNU C library"),
    ],
)
def test_elsewhere_nothing_is_loaded_and_nothing_is_said(change: str, words: str) -> None:
    facts = child(
        f"""{PRODUCT}
from core.blas import binding
import mlx.core
{change}
import core.nn
from core import blas
blas.check()
report(status=status(), text=str(blas.bind()), right=product(), mapped=mapped("openblas"))
""",
        environment={"CORE_BLAS": "/no/such/library"},
    )
    assert facts["status"] is None
    assert words in facts["text"]
    assert facts["right"]
    assert not facts["mapped"]
