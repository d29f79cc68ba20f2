"""Imports one plugin in a process of its own, and says how long that took or what went wrong.

A plugin may print, start threads, hang, exit or crash the interpreter: it is the child's interpreter. The child finds
the very claim in its own metadata, on the parent's module path.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

from core.errors import CoreError, PluginError
from core.registry import Claim, claims
from core.registry.importing import import_claim

_SECONDS = 60
_CHILD = (
    "import json, sys; task = json.load(sys.stdin); sys.path[:] = task['path'];"
    "from core.cli.probe import answer; answer(task['claim'])"
)


@dataclass(frozen=True)
class Outcome:
    """Seconds that the import took, or the error; never both."""

    seconds: float | None = None
    error: str | None = None


def probe(claim: Claim, timeout: float = _SECONDS) -> Outcome:
    """Imports a claim's plugin and checks it against the contract, elsewhere; one registered in this process, here."""
    if claim.plugin is not None:
        return _attempt(claim)
    task = json.dumps({"path": sys.path, "claim": _identity(claim)})
    command = [sys.executable, "-P", "-c", _CHILD]
    try:
        child = subprocess.run(command, input=task.encode(), capture_output=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return Outcome(error=f"importing it did not end within {timeout:g} seconds")
    try:
        return Outcome(**json.loads(child.stdout))
    except (ValueError, TypeError):
        return Outcome(error=_died(child.returncode, child.stderr))


def answer(identity: list[Any]) -> None:
    """The child's whole work. Ends the process at once: threads that the plugin started are not waited for."""
    pipe = os.dup(1)
    os.dup2(2, 1)  # what the plugin prints is not the answer
    found = [claim for claim in claims() if _identity(claim) == identity]
    outcome = _attempt(found[0]) if found else Outcome(error="a fresh process does not find it")
    os.write(pipe, json.dumps(outcome.__dict__).encode())
    os._exit(0)


def _attempt(claim: Claim) -> Outcome:
    from core.registry import bind  # needs MLX, which a listing without imports does not

    started = time.perf_counter()
    try:
        module = import_claim(claim)
        seconds = time.perf_counter() - started
        if claim.tier != "fallback":
            bind(claim)
        elif not callable(getattr(module, "claims", None)):
            raise PluginError(f"fallback {claim} has no function claims(model_type)")
    except CoreError as error:
        return Outcome(error=str(error))
    return Outcome(seconds=seconds)


def _identity(claim: Claim) -> list[Any]:
    return [claim.tier, claim.model_type, claim.value, claim.distribution, claim.version]


def _died(code: int, stderr: bytes) -> str:
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    said = stderr.decode("utf-8", "replace").strip().splitlines()
    return f"importing it ended the interpreter ({how})" + (f"\n{said[-1]}" if said else "")
