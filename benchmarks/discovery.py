"""What installed plugins cost everybody: the time in which the registry finds the claims of N more distributions.

    python benchmarks/discovery.py [--distributions 100] [--repeats 15]

Each measurement is the first ``claims()`` of a fresh process, in turns without and with the distributions, so that
neither side warms the other's files; a load makes one such call. The distributions are metadata as pip installs it,
each with one claim and a requirement on corelm. Nothing is imported from them: they have no modules.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

_CHILD = """
import time
import core.registry
started = time.perf_counter()
found = core.registry.claims()
print(time.perf_counter() - started, len(found))
"""


def write_distributions(site: Path, count: int) -> None:
    """Metadata of ``count`` installed plugins."""
    for number in range(count):
        info = site / f"corelm_type{number}-1.0.dist-info"
        info.mkdir(parents=True)
        lines = ["Metadata-Version: 2.4", f"Name: corelm-type{number}", "Version: 1.0", "Requires-Dist: corelm>=0.1"]
        (info / "METADATA").write_text("\n".join([*lines, "Requires-Dist: numpy", "", "# A plugin", "Words. " * 300]))
        (info / "entry_points.txt").write_text(f"[core.architectures]\ntype{number} = corelm_type{number}\n")
        (info / "RECORD").write_text("")


def measure(path: list[Path]) -> tuple[float, int]:
    """Milliseconds of the first ``claims()``, and how many it found."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))}
    done = subprocess.run([sys.executable, "-c", _CHILD], env=environment, capture_output=True, text=True, check=True)
    seconds, found = done.stdout.split()
    return float(seconds) * 1e3, int(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--distributions", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    root = Path(__file__).resolve().parents[1]
    times: dict[int, list[float]] = {0: [], args.distributions: []}
    with tempfile.TemporaryDirectory() as site:
        write_distributions(Path(site), args.distributions)
        for _ in range(args.repeats):
            for count in times:
                elapsed, found = measure([root, Path(site)] if count else [root])
                assert found >= count
                times[count].append(elapsed)
    for count, measured in times.items():
        low, middle, high = min(measured), statistics.median(measured), max(measured)
        print(f"{count:4} more distributions: {low:.1f} / {middle:.1f} / {high:.1f} ms (min / median / max)")
    print(f"added: {statistics.median(times[args.distributions]) - statistics.median(times[0]):.1f} ms")


if __name__ == "__main__":
    main()
