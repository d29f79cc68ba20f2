"""An installation without MLX's library, or with two of them: the error says which command mends it."""

from __future__ import annotations

import ctypes
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest

import core
from core import installation
from core.cli import main
from core.errors import CoreError, InstallationError
from tests.registry.children import child
from tests.registry.public_api import MODULES

CPU = {"mlx": "0.32.4", "mlx-cpu": "0.32.4"}
CUDA = {"mlx": "0.32.4", "mlx-cuda-13": "0.32.4"}
State = Callable[..., None]


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> State:
    """A machine with these packages of MLX's, this driver, and an MLX that cannot be imported."""

    def set_state(packages: dict[str, str], driver: int | None = None, platform: str = "linux") -> None:
        monkeypatch.setattr(installation, "installed", lambda: packages)
        monkeypatch.setattr(installation, "driver", lambda: driver)
        monkeypatch.setattr(sys, "platform", platform)
        monkeypatch.setitem(sys.modules, "mlx.core", None)

    return set_state


@pytest.mark.parametrize(
    ("packages", "driver", "platform", "command"),
    [
        (
            {"mlx": "0.32.4"},
            None,
            "linux",
            'pip install "corelm[cpu]", or "corelm[cuda13]" with an NVIDIA GPU (no NVID',
        ),
        ({}, None, "linux", 'pip install "corelm[cpu]", or "corelm[cuda13]" with'),
        (
            {"mlx": "0.32.4"},
            13000,
            "linux",
            'pip install "corelm[cuda13]" (the NVIDIA driver here is for CUDA 13.0), or',
        ),
        (
            {"mlx": "0.32.4"},
            12080,
            "linux",
            'pip install "corelm[cuda12]" (the NVIDIA driver here is for CUDA 12.8), or',
        ),
        ({"mlx": "0.32.4"}, 11040, "linux", 'pip install "corelm[cpu]"; the NVIDIA driver here is for CUDA 11.4, and'),
        (CPU | CUDA, 13000, "linux", 'pip uninstall mlx mlx-cpu mlx-cuda-13, then pip install "corelm[cuda13]"'),
        (CPU | {"mlx": "0.33.0"}, None, "linux", 'pip install --force-reinstall "mlx[cpu]==0.33.0"'),
        (CUDA, None, "linux", 'pip uninstall mlx mlx-cuda-13, then pip install "corelm[cpu]"'),
        (CUDA, 13010, "linux", 'pip install --force-reinstall "mlx[cuda13]==0.32.4"'),
        (CPU, None, "linux", 'pip install --force-reinstall "mlx[cpu]==0.32.4"'),
        ({}, None, "darwin", "pip install mlx"),
        ({"mlx": "0.32.4", "mlx-metal": "0.32.4"}, None, "darwin", "pip install --force-reinstall mlx"),
    ],
)
def test_the_way_out(state: State, packages: dict[str, str], driver: int | None, platform: str, command: str) -> None:
    state(packages, driver, platform)
    with pytest.raises(InstallationError, match="MLX cannot be imported") as caught:
        installation.check_mlx()
    assert command in (caught.value.hint or "")
    assert isinstance(caught.value, ImportError)  # whoever catches that goes on catching it
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize(
    ("packages", "driver", "said"),
    [
        (CUDA, None, "mlx-cuda-13 is installed, but computes on the CPU: no NVIDIA driver is found"),
        (CUDA, 12080, "the NVIDIA driver is for CUDA 12.8, and it needs one for CUDA 13: update the driver"),
        (CUDA, 13000, "MLX finds no GPU that it can use"),
        (CPU, 13000, None),
    ],
)
def test_a_cuda_package_that_computes_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, packages: dict[str, str], driver: int | None, said: str | None
) -> None:
    monkeypatch.setattr(installation, "installed", lambda: packages)
    monkeypatch.setattr(installation, "driver", lambda: driver)
    monkeypatch.setattr(mx.cuda, "is_available", lambda: False)
    found = installation.unused_gpu()
    assert found is None if said is None else said in (found or "")
    monkeypatch.setattr(mx.cuda, "is_available", lambda: True)
    assert installation.unused_gpu() is None


def test_the_version_of_the_driver_is_asked_of_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    class Driver:
        @staticmethod
        def cuDriverGetVersion(version: object) -> int:  # noqa: N802
            version._obj.value = 12040  # type: ignore[attr-defined]
            return 0

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver if name == "libcuda.so.1" else None)
    assert installation.driver() == 12040
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert installation.driver() is None


def test_this_installation_is_sound() -> None:
    installation.check_mlx()
    assert installation.installed()["mlx"]
    assert installation.conflict() is None


def test_other_imports_that_fail_stay_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(core._HOMES, "load", "core.no_such_room")
    monkeypatch.delitem(vars(core), "load", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"core\.no_such_room") as caught:
        core.load  # noqa: B018
    assert not isinstance(caught.value, CoreError)


@pytest.fixture
def without_library(tmp_path: Path) -> Path:
    """A directory whose ``mlx`` is what pip leaves on Linux without an extra."""
    (tmp_path / "mlx").mkdir()
    (tmp_path / "mlx" / "__init__.py").touch()
    (tmp_path / "mlx" / "core.py").write_text("raise ImportError('libmlx.so: cannot open shared object file')\n")
    return tmp_path


def test_python_and_the_commands_say_it(without_library: Path, tmp_path: Path) -> None:
    facts = child(
        """
        import contextlib, io, sys
        import core
        from core.cli import main
        from core.errors import InstallationError
        said = {}
        try:
            core.load("demo:mistral")
        except InstallationError as error:
            said["load"] = str(error)
        def run(*arguments):
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = main(arguments)
            said[arguments[0]] = [code, out.getvalue(), err.getvalue()]
        run("generate", "hi", "-m", "demo:mistral")
        run("doctor")
        run("new", "olmo9", "--dir", sys.argv[1])
        run("inspect", "--plugins")
        report(**said)
        """,
        tmp_path,
        path=[without_library],
    )
    problem = "MLX cannot be imported (found libmlx.so: cannot open shared object file)\n"
    assert facts["load"].startswith(problem)
    code, out, err = facts["generate"]
    assert (code, out) == (1, "")
    assert err.startswith(f"error: {problem}")
    assert "fault of corelm" not in err
    code, out, err = facts["doctor"]
    assert (code, err) == (1, "")
    assert "\ndevice       none, as MLX cannot be imported\n" in out
    assert f"\n1 problem\n- {problem}" in out
    code, out, err = facts["new"]
    assert (code, err) == (0, "")
    code, out, err = facts["inspect"]
    assert (code, err) == (0, "")
    assert "plugins.mistral   active" in out


def test_what_plugins_import_says_it(without_library: Path) -> None:
    facts = child(
        """
        import importlib, sys
        from core.errors import InstallationError
        said = {}
        for module in sys.argv[1:]:
            try:
                for name in getattr(importlib.import_module(module), "__all__", ()):
                    getattr(sys.modules[module], name)
            except InstallationError as error:
                said[module] = str(error)
        report(**said)
        """,
        *(module for module in MODULES if module != "core.errors"),
        "core.testing.diff",
        path=[without_library],
    )
    assert facts.keys() == {"core", "core.nn", "core.weights", "core.kernels", "core.testing", "core.testing.diff"}
    for said in facts.values():
        assert said.startswith("MLX cannot be imported (found libmlx.so: cannot open shared object file)\n")


def test_plugins_are_not_blamed(state: State, capsys: pytest.CaptureFixture[str]) -> None:
    state(CUDA)
    assert main(["inspect", "--plugins", "--import"]) == 1
    assert capsys.readouterr().err.startswith("error: MLX cannot be imported (found ")


def test_doctor_names_two_libraries_that_overwrite_each_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(installation, "installed", lambda: CPU | {"mlx-cuda-12": "0.32.4"})
    monkeypatch.setattr(mx.cuda, "is_available", lambda: True)
    problems: list[str] = []
    from core.cli.doctor import _has_mlx

    assert _has_mlx(problems)
    (problem,) = problems
    assert problem.startswith("several libraries of MLX are installed, and write the same files: mlx-cpu, mlx-cuda-12.")
