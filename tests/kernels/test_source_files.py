"""CUDA and Metal files: how they become one text."""

from __future__ import annotations

from pathlib import Path

from core.kernels.cuda_text import constants
from core.kernels.source_files import CUDA, METAL, source_text


def test_a_file_comes_once_and_before_what_includes_it(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "one.cuh").write_text("#pragma once\n#include <cuda_bf16.h>\nint one;\n")
    (tmp_path / "two.cuh").write_text('#pragma once\n#include "below/one.cuh"\nint two;\n')
    (tmp_path / "all.cu").write_text('#include "two.cuh"\n#include "below/one.cuh"\nint all;\n')
    assert source_text(tmp_path / "all.cu") == "#include <cuda_bf16.h>\nint one;\nint two;\nint all;\n"


def test_no_text_needs_a_file_when_it_is_compiled() -> None:
    files = [*CUDA.iterdir(), *METAL.iterdir()]
    assert len(files) > 20
    assert all('#include "' not in source_text(file) for file in files)


def test_constants_have_the_types_of_their_values() -> None:
    text = constants("space", {"ROWS": 3, "SCALE": 0.5, "NOTHING": -1e30, "PARTS": True})
    assert text == (
        "namespace space {\nconstexpr int ROWS = 3;\nconstexpr float SCALE = 0.5f;\n"
        "constexpr float NOTHING = -1e+30f;\nconstexpr bool PARTS = true;\n}\n"
    )
