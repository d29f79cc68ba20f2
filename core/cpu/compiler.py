"""The C compiler: which one is here, for which machine it compiles, and how it is run."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_NAMES = ("cc", "gcc", "clang")


class CompilerError(Exception):
    """There is no C compiler, or it does not compile what it was given; the text says which, and is for people."""


@dataclass(frozen=True)
class Compiler:
    """A C compiler that answers.

    Attributes:
        command: the program and the arguments that always come first.
        machine: what it compiles for, as ``platform.machine()`` says it.
        version: the first line of what it says of itself.
    """

    command: tuple[str, ...]
    machine: str
    version: str

    def knows(self, flags: Sequence[str]) -> bool:
        """Whether the compiler takes these flags."""
        try:
            self.run([*flags, "-x", "c", "-S", "-o", "/dev/null", "/dev/null"])
        except CompilerError:
            return False
        return True

    def run(self, arguments: Sequence[str | Path], cwd: Path | None = None) -> str:
        """Runs the compiler and returns its standard output.

        Raises:
            CompilerError: it fails; the text is what it says.
        """
        return _run([*self.command, *map(str, arguments)], cwd)


def find_compiler(environment: Mapping[str, str]) -> Compiler:
    """The compiler that ``CC`` names, else the first of cc, gcc and clang on the path.

    Raises:
        CompilerError: there is none, or it does not answer as gcc and clang do.
    """
    asked = shlex.split(environment.get("CC", ""))
    path = environment.get("PATH")
    if asked:
        command = asked
    else:
        found = next((name for name in _NAMES if shutil.which(name, path=path)), None)
        if found is None:
            raise CompilerError("there is no C compiler")
        command = [found]
    program = shutil.which(command[0], path=path)
    if program is None:
        raise CompilerError(f"there is no C compiler {command[0]}, which CC names")
    command[0] = program
    target = _run([*command, "-dumpmachine"]).strip()
    machine, _, rest = target.partition("-")
    if "linux" not in rest or target.endswith(("x32", "ilp32")):
        raise CompilerError(f"{command[0]} compiles for {target or 'an unknown machine'}")
    return Compiler(tuple(command), machine, _run([*command, "--version"]).partition("\n")[0])


def _run(command: list[str], cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise CompilerError(f"{command[0]} cannot be run: {error}") from error
    if done.returncode:
        raise CompilerError(f"{Path(command[0]).name} fails: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout
