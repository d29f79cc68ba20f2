"""A peer's process: ``python -P peer_program.py SIDE.py``. The class ``Side`` in SIDE.py has a method for each task.

It reads one JSON object a line on stdin, and answers each with one on the original stdout; the peer's own output goes
to stderr. If a side does not report the memory of a task, the process's peak resident memory is added. It imports
nothing of core, so that the peer's process has no code of ours.
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
        except Exception as error:  # reported to the caller
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


def forget_peak() -> None:
    """Resets the system's peak memory, where it can: on Linux."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Peak resident memory of this process in bytes; 0 if the system does not report it."""
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
