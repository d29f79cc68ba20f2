"""``import core`` beside ``import mlx_lm``, in turns, each in a fresh process.

    python benchmarks/imports.py [--repeats 11]

Names of core are imported when they are first used, so a third line says what all that a generation needs costs.
mlx-lm is the peer, never a dependency: install it beside the project to run its side.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import subprocess
import sys

LINES = {
    "core": "import core",
    "core, used": "from core import load, generate_tokens; import core.text",
    "mlx-lm": "import mlx_lm",
}
_CHILD = "import time; started = time.perf_counter(); {}; print(time.perf_counter() - started)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=11)
    arguments = parser.parse_args()
    lines = dict(LINES)
    if importlib.util.find_spec("mlx_lm") is None:
        del lines["mlx-lm"]
    times: dict[str, list[float]] = {name: [] for name in lines}
    for _ in range(arguments.repeats + 1):
        for name, line in lines.items():
            done = subprocess.run(
                [sys.executable, "-c", _CHILD.format(line)], capture_output=True, text=True, check=True
            )
            times[name].append(float(done.stdout.split()[-1]))
    for name, found in times.items():
        counted = found[1:]  # the first of each reads the files
        middle = statistics.median(counted)
        ratio = f", {middle / statistics.median(times['mlx-lm'][1:]):.3f} of mlx-lm's" if "mlx-lm" in times else ""
        print(f"{name:12} {middle * 1e3:7.1f} ms ({min(counted) * 1e3:.1f}–{max(counted) * 1e3:.1f}){ratio}")


if __name__ == "__main__":
    main()
