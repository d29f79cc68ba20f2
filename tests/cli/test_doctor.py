"""``corelm doctor``: a report of what works here, and exit code 1 where something does not."""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import pytest

import core
import core.fast
import core.loading  # with all that takes the device from where a test replaces it
from core.checkpoint import source
from core.cli import environment
from core.cli.plugins import ClaimFacts, PluginList
from core.kernels import Kernel, KernelWarning, Launch, registry
from core.kernels.device import current_device, use_device
from tests.cli.conftest import Run
from tests.cli.packages import install
from tests.fixtures import STORIES, oracle


@pytest.fixture
def demos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the demo models, with one in it."""
    directory = tmp_path / "demos"
    shutil.copytree(STORIES, directory / "stories")
    monkeypatch.setattr(source, "DEMOS", directory)
    return directory


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No plugin is imported in a process of its own: test_plugins.py does that."""
    claim = ClaimFacts("mistral", "builtin", "corelm", "1", "plugins.mistral", None, "active", seconds=0.01)
    found = PluginList(1, environment.environment(), (claim,))
    monkeypatch.setattr("core.cli.plugins.list_plugins", lambda imports: found)
    monkeypatch.setattr(registry, "_kernels", dict(registry._kernels))


@pytest.fixture
def only_tested(monkeypatch: pytest.MonkeyPatch, quick: None) -> None:
    """The kernels that the test makes, and a device that is said to run fused sources."""
    monkeypatch.setattr(registry, "_kernels", {})
    monkeypatch.setattr("core.kernels.device.current_device", lambda: "some GPU")


def test_all_is_well(corelm: Run, demos: Path) -> None:
    outcome = corelm("doctor")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.endswith("\nall is well\n")
    assert re.search(rf"^core +{re.escape(core.__version__)}\n", outcome.out)
    assert re.search(r"\ndevice +(cpu|metal|cuda) \(.+\), [\d.]+ [GT]iB", outcome.out)
    assert re.search(r"\nCPU library  (none|[\w.-]+ \(/.+\.so\))", outcome.out)
    assert re.search(r"\npackages +.*\bmlx [\d.]+.*\btokenizers [\d.]+", outcome.out)
    assert re.search(r"\n  mixtral +builtin +corelm .* active\n", outcome.out)
    assert re.search(
        r"\n  (\d+) of \1 agree with their references \(.*\bswiglu\b.*; \d+ of them fused"
        if current_device()
        else r"\nkernels\n  no fused source runs on this device: all \d\d+ kernels use their references, in plain MLX",
        outcome.out,
    )
    assert re.search(r"\n  demo:stories  ok, \d+ tok/s: To be, or.+\n", outcome.out)


@pytest.mark.usefixtures("quick", "demos")
def test_every_case_of_every_kernel(corelm: Run) -> None:
    outcome = corelm("doctor", "--kernels")
    assert outcome.code == 0
    rows = [line.split() for line in outcome.out.splitlines() if line.startswith("  swiglu ")]
    assert {row[1] for row in rows} == {"float32", "float16", "bfloat16"}
    assert {row[4] for row in rows} == {"ok"}


def kernel(reference: Callable[[mx.array], mx.array], samples: Callable[..., list[tuple[mx.array, ...]]]) -> Kernel:
    launch = Launch((1, 1, 1), (1, 1, 1), (3,), mx.float32, ())
    return Kernel("wrong", reference, launch=lambda x: launch, sample_inputs=samples)


@pytest.mark.usefixtures("quick", "demos")
def test_without_a_fused_source_nothing_is_compared_with_itself(corelm: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str] = []
    monkeypatch.setattr("core.cli.kernels.check_kernel", lambda kernel: checked.append(kernel.name))
    with use_device(None):
        outcome = corelm("doctor")
    assert (outcome.code, checked) == (0, [])
    count = len(registry.registered_kernels())
    assert (
        f"\n  no fused source runs on this device: all {count} kernels use their references, in plain MLX"
        in outcome.out
    )
    assert "agree with" not in outcome.out.partition("\nkernels\n")[2].partition("\nmodels\n")[0]


@pytest.mark.usefixtures("quick", "demos", "only_tested")
@pytest.mark.parametrize("full", [(), ("--kernels",)])
def test_a_kernel_that_is_wrong(corelm: Run, full: tuple[str, ...]) -> None:
    kernel(lambda x: x if x.dtype == mx.float32 else x + 1, lambda key, dtype: [(mx.ones((3,), dtype),)])
    outcome = corelm("doctor", *full)
    assert outcome.code == 1
    assert "\n1 problem\n- kernel wrong of tests.cli.test_doctor disagrees with its reference in 2 of 3" in outcome.out
    if full:
        assert re.search(r"\n  wrong +float16 +\[3\]", outcome.out)


@pytest.mark.usefixtures("quick", "demos", "only_tested")
def test_a_kernel_that_cannot_be_checked(corelm: Run) -> None:
    def samples(key: mx.array, dtype: mx.Dtype) -> list[tuple[mx.array, ...]]:
        raise ValueError("no samples")

    kernel(lambda x: x, samples)
    outcome = corelm("doctor")
    assert outcome.code == 1
    assert "- kernel wrong cannot be checked: ValueError: no samples\n" in outcome.out


@pytest.mark.usefixtures("quick")
def test_demos_that_do_not_load(corelm: Run, demos: Path) -> None:
    shutil.copytree(oracle("mistral_swa8"), demos / "mute")
    outcome = corelm("doctor")
    assert outcome.code == 1
    assert "\n  demo:mute  failed\n  demo:stories  ok, " in outcome.out
    assert re.search(r"\n1 problem\n- demo:mute: .*tokenizer\.json", outcome.out)


@pytest.mark.usefixtures("quick")
def test_no_demo_is_said_plainly(corelm: Run, demos: Path) -> None:
    shutil.rmtree(demos)
    outcome = corelm("doctor")
    assert outcome.code == 0
    assert "\nmodels\n  no demos: this installation has none\n" in outcome.out
    assert "\nfast decode step\n  not used: there is no model to use it for\n" in outcome.out


@pytest.mark.usefixtures("quick", "demos")
def test_why_no_model_gets_the_fast_step_is_one_line_where_it_is_the_device(corelm: Run) -> None:
    with use_device(None):
        outcome = corelm("doctor", str(STORIES))
    assert outcome.code == 0
    assert f"\n  {STORIES}  ok, " in outcome.out
    assert "\nfast decode step\n  not used: no CUDA device\n\n" in outcome.out


@pytest.mark.usefixtures("only_tested", "demos")
def test_kernels_that_mlx_compiles_itself_are_named(corelm: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = {"custom_kernel_swiglu": "kernel.cu(3): error: what?\n  1 error detected"}
    device = SimpleNamespace(compiler=SimpleNamespace(failures=failures))
    monkeypatch.setattr("core.kernels.device.current_device", lambda: device)
    outcome = corelm("doctor")
    assert outcome.code == 0, "they are right, and start slowly"
    told = "kernels that MLX compiles itself, in every process\n  custom_kernel_swiglu: kernel.cu(3): error: what?\n\n"
    assert told in outcome.out


@pytest.mark.usefixtures("quick", "demos")
def test_why_a_model_does_not_get_the_fast_step(corelm: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.fast.device_reason", lambda: None)
    monkeypatch.setattr("core.fast.entry.device_reason", lambda: None)
    outcome = corelm("doctor")
    assert outcome.code == 0
    assert "\n  demo:stories  not used: a cache in another type than bfloat16\n" in outcome.out


@pytest.mark.usefixtures("quick", "demos")
@pytest.mark.parametrize("agrees", [True, False])
def test_a_model_that_gets_the_fast_step_or_fails_its_check(
    corelm: Run, monkeypatch: pytest.MonkeyPatch, agrees: bool
) -> None:
    closed: list[bool] = []

    class Step:
        def close(self) -> None:
            closed.append(True)

    def step(model: object, cache: object) -> Step | None:
        if not agrees:
            warnings.warn("the fast decode step is off for this model", KernelWarning, stacklevel=2)
        return Step() if agrees else None

    monkeypatch.setattr("core.fast.device_reason", lambda: None)
    monkeypatch.setattr("core.fast.reason", lambda model, cache: None)
    monkeypatch.setattr("core.generation.loop._fast_step", lambda model, cache: None)
    monkeypatch.setattr("core.fast.fast_step", step)
    outcome = corelm("doctor")
    wanted = (
        "used, and agrees with the ordinary path" if agrees else "not used: the fast decode step is off for this model"
    )
    assert f"\n  demo:stories  {wanted}\n" in outcome.out
    assert closed == [True] * agrees


@pytest.mark.usefixtures("demos")
def test_a_package_whose_metadata_cannot_be_read_is_named(
    corelm: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(tmp_path / "site", "rotten", {"dies": "dies_plugin"}, {})
    (entry_points,) = (tmp_path / "site").glob("rotten*/entry_points.txt")
    entry_points.write_bytes(b"\xff")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    outcome = corelm("doctor")
    assert outcome.code == 1
    assert "\n1 problem\n- package rotten: unusable: its entry_points.txt cannot be read (" in outcome.out


def test_a_broken_plugin(corelm: Run, demos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(tmp_path / "site", "corelm-dies", {"dies": "dies_plugin"}, {"dies_plugin.py": "import os; os._exit(7)"})
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    outcome = corelm("doctor")
    assert outcome.code == 1
    assert "- plugin dies_plugin for dies: importing it ended the interpreter (exit code 7)\n" in outcome.out
    assert "\n  demo:stories  ok, " in outcome.out


@pytest.mark.usefixtures("quick", "demos")
def test_packages_that_are_absent_or_too_old(corelm: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["mlx>=9999", "no-such-package>=1", "pluggy", "mlx[cuda12] ; extra == 'cuda12'"]
    monkeypatch.setattr("importlib.metadata.requires", lambda name: wanted)
    outcome = corelm("doctor")
    assert outcome.code == 1
    assert re.search(r"\n2 problems\n- package mlx [\d.]+ \(needs >=9999\)\n", outcome.out)
    assert "\n- package no-such-package is not installed (needs >=1)\n" in outcome.out
