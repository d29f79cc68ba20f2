"""Every CUDA text compiles for every architecture that is to run it; needs no GPU.

nvcc compiles all programs of ``cuda_programs``: those with Hopper's own instructions for sm_90a, the others for all
four. It optimizes little, because that takes half the time and finds the same errors; only Hopper's products are
compiled as NVRTC compiles them, since ptxas serializes them where it cannot follow the text.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import pytest
from cuda_programs import ARCHITECTURES, HOPPER, STEPS, Program, core_kernels, one_text, programs, symbol

from core.kernels.cuda_code import nvrtc
from core.kernels.cuda_code.compiler import include_folders
from tests.ci import only_in_ci

_QUICK = ["-Xcicc", "-O1", "-Xptxas", "-O1"]


def unavailable(reason: str) -> None:
    if os.environ.get("CI") and shutil.which("nvcc"):
        pytest.fail(reason)
    pytest.skip(reason)


def run_nvcc(text: str, architecture: str, folder: Path, options: Sequence[str]) -> tuple[bytes | None, str]:
    """The compiled code (None where there is none), and what nvcc said."""
    source, target = folder / "programs.cu", folder / "programs.cubin"
    source.write_text(text)
    include = Path(mx.__file__).parent / "include"
    fixed = ["nvcc", "-cubin", f"-arch={architecture}", "-std=c++17", "-diag-suppress=177", f"-I{include}"]
    command = [*fixed, *options, str(source), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (target.read_bytes() if done.returncode == 0 else None), done.stdout + done.stderr


def compiled(chosen: Sequence[Program], architecture: str, folder: Path, options: Sequence[str] = ()) -> str:
    """Compiles programs; gives what nvcc said."""
    if shutil.which("nvcc") is None:
        unavailable("no nvcc: the CUDA texts were not compiled")
    code, said = run_nvcc("__global__ void empty() {}\n", architecture, folder, ())
    if code is None:
        unavailable(
            f"nvcc compiles nothing for {architecture}: the CUDA texts were not compiled for it: {said.strip()}"
        )
    code, said = run_nvcc(one_text(chosen), architecture, folder, options)
    assert code is not None, said[:4000]
    missing = [each.kernel for number, each in enumerate(chosen) if symbol(number, each).encode() not in code]
    assert not missing, "compiled, and yet not there"
    return said


def is_wgmma(program: Program) -> bool:
    return "wgmma" in program.source


def test_each_kernel_and_each_step_gives_programs() -> None:
    found = programs()
    assert {each.kernel for each in found} == {*core_kernels(), "corelm_step"}
    assert sum(each.kernel == "corelm_step" for each in found) == len(STEPS)
    assert all(each.instance.known for each in found)
    elsewhere = {each.source for each in found if each.capabilities == {*ARCHITECTURES.values()}}
    assert {each.source for each in found} - elsewhere == {
        "corelm_step",
        "prefill_attention_wgmma",
        "prefill_attention_wgmma_parts",
    }


@only_in_ci
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiles(architecture: str, tmp_path: Path) -> None:
    capability = ARCHITECTURES[architecture]
    chosen = [each for each in programs() if capability in each.capabilities and not is_wgmma(each)]
    compiled(chosen, architecture, tmp_path, _QUICK)


@only_in_ci
def test_products_of_hopper_compile_and_are_not_serialized(tmp_path: Path) -> None:
    said = compiled([each for each in programs() if is_wgmma(each)], "sm_90a", tmp_path)
    assert "wgmma" not in said, said
    assert "warpgroup" not in said, said


def test_nvrtc_compiles_one_program_of_each_source() -> None:
    try:
        nvrtc.version()
    except nvrtc.CompileError as error:
        pytest.skip(f"no NVRTC: {error}")
    include = include_folders()
    if include is None:
        pytest.skip("no headers of MLX and CUDA: NVRTC compiled nothing")
    for program in {each.source: each for each in programs() if HOPPER in each.capabilities}.values():
        instance = program.instance
        code = nvrtc.compile_kernel(instance.text, instance.qualified, "sm_90a", include)
        assert code.cubin.startswith(b"\x7fELF"), program.kernel
        assert instance.function in code.symbol
        assert code.symbol.encode() in code.cubin
