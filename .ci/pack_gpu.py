"""Packs what a GPU machine without network lacks: MLX for CUDA, what core and its tests need, and core itself.

    python .ci/pack_gpu.py DIR [--python 3.12] [--cuda 13] [--most MB] [PACKAGE ...]

Downloads wheels for Linux on x86-64 in the versions of ``constraints.txt``, and prints the commands that install them
there. Named packages come besides those of the list below; a version may be given with ``==``. CUDA's own libraries,
which MLX's wheel asks for, are gigabytes and not packed: an installed torch brings them.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
# The newest first: an index has few packages for all of them.
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (35, 34, 31, 28, 27, 24, 17)] + ["manylinux2014_x86_64", "any"]
PACKAGES = [
    "mlx",
    "pluggy",
    "pydantic",
    "pydantic-core",
    "annotated-types",
    "typing-inspection",
    "typing-extensions",
    "safetensors",
    "pytest-xdist",
    "execnet",
    "hypothesis",
    "sortedcontainers",
]


def pip(*arguments: str) -> None:
    """Runs pip, which says itself what goes wrong."""
    done = subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments], check=False)
    if done.returncode:
        raise SystemExit(f"pip {arguments[0]} failed")


def mlx_version() -> str:
    found = re.search(r"^mlx==(\S+)$", CONSTRAINTS.read_text(), re.MULTILINE)
    if found is None:
        raise SystemExit(f"{CONSTRAINTS} names no version of mlx")
    return found[1]


def download(folder: Path, python: str, packages: list[str]) -> None:
    chosen = [f"--platform={platform}" for platform in PLATFORMS]
    target = ["--only-binary=:all:", f"--python-version={python}", "--implementation=cp", *chosen]
    pip("download", "--quiet", "--no-deps", "--constraint", str(CONSTRAINTS), "--dest", str(folder), *target, *packages)
    # The machine may have an older C library than this one, and computes on its GPU: core's wheel is the pure one.
    os.environ["CORELM_NO_CPU_BUILD"] = "1"
    pip("wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT))


def split(wheels: list[Path], directory: Path, most: int) -> list[Path]:
    """Puts wheels into folders of at most so many bytes; cuts those that are larger."""
    parts: list[tuple[str, bytes]] = []
    for wheel in wheels:
        data = wheel.read_bytes()
        pieces = [data[at : at + most] for at in range(0, len(data), most)]
        if len(pieces) == 1:
            parts.append((wheel.name, data))
        else:
            parts += [(f"{wheel.name}.part{i:03}", piece) for i, piece in enumerate(pieces)]
    folders: list[Path] = []
    left = 0
    for name, data in sorted(parts, key=lambda part: -len(part[1])):
        if len(data) > left:
            folders.append(directory / str(len(folders) + 1))
            folders[-1].mkdir()
            left = most
        left -= len(data)
        (folders[-1] / name).write_bytes(data)
    return folders


JOIN = """\
# Files with .partNNN in their names are parts of one wheel.
cd WHEELS
for first in *.part000; do
  [ -e "$first" ] && cat "${first%000}"* > "${first%.part000}" && rm "${first%000}"*
done
cd -
"""
INSTALL = """\
python3 -m pip install --no-index --no-deps --no-compile --upgrade --target SITE WHEELS/*.whl
# In a copy of this checkout:
PYTHONPATH=SITE make test-gpu PYTHON_GPU=python3"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="where to put the wheels; must not exist, or be empty")
    parser.add_argument("packages", nargs="*", metavar="PACKAGE", help="more packages that the machine lacks")
    parser.add_argument("--python", default="3.12", help="the machine's Python (default: 3.12)")
    parser.add_argument("--cuda", default="13", choices=["12", "13"], help="the machine's CUDA (default: 13)")
    parser.add_argument("--most", type=int, metavar="MB", help="put at most so much into each of several folders")
    arguments = parser.parse_args()
    directory = arguments.directory
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise SystemExit(f"{directory} is not an empty directory")
    if arguments.most is not None and arguments.most < 1:
        raise SystemExit("--most takes a number of megabytes from 1 on")
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as work:
        download(
            Path(work),
            arguments.python,
            [*PACKAGES, f"mlx-cuda-{arguments.cuda}=={mlx_version()}", *arguments.packages],
        )
        wheels = sorted(Path(work).glob("*.whl"))
        if arguments.most is None:
            for wheel in wheels:
                shutil.move(wheel, directory)
            folders = [directory]
        else:
            folders = split(wheels, directory, arguments.most * 1_000_000)
    for folder in folders:
        files = sorted(folder.iterdir())
        print(f"{folder}: {sum(file.stat().st_size for file in files):,} bytes")
        for file in files:
            print(f"  {file.name}")
    where = "its files" if len(folders) == 1 else "the files of all folders"
    print(f"\nOn the machine, with {where} in a directory WHEELS, and a directory SITE for what they install:\n")
    print((JOIN if arguments.most is not None else "") + INSTALL)


if __name__ == "__main__":
    main()
