"""A peer's process: ``python -P peer_program.py SIDE.py``; in SIDE.py, a class ``Side`` has a method for each task.

Reads one JSON object a line on stdin and answers each with one on what stdout was; whatever the peer prints goes to
stderr. Where a side does not say how much memory a task took, the most that the process had resident is added. Imports
nothing of core, so that nothing of it is in the peer's process.
"""

import contextlib
import json
import os
import runpy
import sys
from pathlib import Path


def main(path: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    side = runpy.run_path(path)["Side"]()
    for line in sys.stdin:
        task = json.loads(line)
        forget_peak()
        try:
            answer = getattr(side, task["do"])(task)
            answer.setdefault("peak_memory", peak())
        except Exception as error:  # told to whoever asked
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


def forget_peak() -> None:
    """Lets the system count the peak from now on, where it can: on Linux."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """The most bytes that this process had resident; 0 where the system does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


if __name__ == "__main__":
    main(sys.argv[1])
