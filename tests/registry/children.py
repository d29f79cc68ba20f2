"""Runs code in a fresh interpreter: what is imported, and from where, can only be asked of a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_REPORT = """
import json as _json
def report(**facts):
    print("REPORT" + _json.dumps(facts))
"""


def child(
    code: str,
    *arguments: object,
    path: Sequence[Path] = (),
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    options: Sequence[str] = ("-W", "error"),
) -> dict[str, Any]:
    """Runs ``code`` and returns what it hands to ``report(name=value, …)``.

    Args:
        arguments: its ``sys.argv[1:]``.
        path: comes before everything else on ``sys.path``, but for ``cwd``.
        environment: added to this process's, less what would configure the registry.
        cwd: the working directory, first on ``sys.path`` as for ``python -m``; None keeps it off the path.
        options: of the interpreter.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("CORE_", "PYTHONPATH"))}
    variables = inherited | {"PYTHONPATH": os.pathsep.join(map(str, path)), "PYTHONDONTWRITEBYTECODE": "1"}
    run = subprocess.run(
        [
            sys.executable,
            *options,
            *(["-P"] if cwd is None else []),
            "-c",
            _REPORT + textwrap.dedent(code),
            *map(str, arguments),
        ],
        env=variables | dict(environment or {}),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    reports = [line.removeprefix("REPORT") for line in run.stdout.splitlines() if line.startswith("REPORT")]
    assert len(reports) == 1, run.stdout
    facts: dict[str, Any] = json.loads(reports[0])
    return facts
