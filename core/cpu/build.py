"""Compiles the CPU library, once for each level: ``python -m core.cpu.build`` in a checkout, and when a wheel is built.

A library is compiled only where its sources, its flags or the compiler have changed, and appears under its name only
when it is whole. What the compiler cannot do is left out. Environment variables: ``CC`` names the compiler,
``CORELM_NO_CPU_BUILD=1`` compiles nothing, ``CORELM_CPU_LEVELS=best`` only the level that this processor takes, and
``CORELM_CPU_STRICT=1`` makes warnings, failures and a missing compiler errors.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from core.cpu.compiler import Compiler, CompilerError, find_compiler
from core.cpu.levels import LEVELS, Level, levels_of
from core.cpu.manifest import (
    FOLDER,
    SOURCE,
    Entry,
    digest,
    read_manifest,
    source_files,
    sources_digest,
    write_manifest,
)
from core.cpu.processor import features, machine

FLAGS = (
    *("-O3", "-fPIC", "-shared", "-std=gnu11", "-ffp-contract=fast", "-fno-math-errno", "-fvisibility=hidden"),
    *("-pthread", "-Wall", "-Wextra", "-Wl,-z,defs"),
)
_LIBRARIES = ("-lm",)
_JOBS = 2


@dataclass(frozen=True)
class Built:
    """What a build left in its folder.

    Attributes:
        machine: what the libraries run on; None where none was compiled.
        libraries: their files, the least level first.
        notes: a line for each level, or the reason why there is none.
    """

    machine: str | None
    libraries: tuple[Path, ...]
    notes: tuple[str, ...]


def build(folder: Path = FOLDER, *, source: Path = SOURCE, environment: Mapping[str, str] = os.environ) -> Built:
    """Compiles the library for all levels of the compiler's machine into a folder, and removes what is stale there.

    Libraries for other machines stay as they are, so that a wheel can be cross-compiled in a checkout that is in use.
    Without a compiler nothing changes in the folder.

    Raises:
        CompilerError: ``CORELM_CPU_STRICT`` is set, and something cannot be compiled.
    """
    strict = _is_set(environment, "CORELM_CPU_STRICT")
    if _is_set(environment, "CORELM_NO_CPU_BUILD"):
        return Built(None, (), ("CORELM_NO_CPU_BUILD is set",))
    if sys.platform != "linux" or sys.maxsize < 2**32:
        return Built(None, (), ("the CPU library is for 64-bit Linux",))
    try:
        compiler = find_compiler(environment)
        levels = levels_of(compiler.machine)
        if not levels or not source_files(source):
            raise CompilerError(f"there are no sources for {compiler.machine}")
        wanted = _wanted(levels, environment.get("CORELM_CPU_LEVELS", ""))
        made = _compile_all(compiler, levels, wanted, source, folder, strict)
    except (CompilerError, OSError) as error:
        if strict:
            raise CompilerError(str(error)) from error
        return Built(None, (), (str(error),))
    libraries = tuple(folder / level.file_name for level in levels if level.name in made.entries)
    return Built(compiler.machine if libraries else None, libraries, tuple(made.notes))


def _wanted(levels: tuple[Level, ...], names: str) -> tuple[Level, ...]:
    """The levels that ``CORELM_CPU_LEVELS`` names: all where it is empty."""
    if names not in ("", "best"):
        raise CompilerError(f"CORELM_CPU_LEVELS is {names!r}; 'best' or nothing was expected")
    if not names or levels[0].machine != machine():
        return levels
    return tuple(level for level in levels if level.features <= features())[-1:]


def _is_set(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "0") not in ("", "0")


@dataclass
class _Made:
    entries: dict[str, Entry]
    notes: list[str]


def _compile_all(
    compiler: Compiler, levels: tuple[Level, ...], wanted: tuple[Level, ...], source: Path, folder: Path, strict: bool
) -> _Made:
    folder.mkdir(parents=True, exist_ok=True)
    before = read_manifest(folder)
    sources = sources_digest(source)
    made = _Made({}, [])

    def one(level: Level) -> tuple[Entry | None, str]:
        flags = (*FLAGS, *level.flags, *(["-Werror"] if strict else []))
        with_what = digest(*(part.encode() for part in (*compiler.command, compiler.version, *flags, *_LIBRARIES)))
        path = folder / level.file_name
        known = before.get(level.name, {})
        if known == {"sources": sources, "made_with": with_what, "file": _digest_of(path)}:
            return known, "unchanged"
        if level not in wanted:
            return None, "skipped: CORELM_CPU_LEVELS is best"
        if not compiler.knows(level.flags):
            return None, f"skipped: {compiler.version} does not know it"
        try:
            _compile(compiler, flags, source, path)
        except CompilerError as error:
            if strict:
                raise
            return None, f"skipped: {error}"
        return {"sources": sources, "made_with": with_what, "file": _digest_of(path)}, "compiled"

    with ThreadPoolExecutor(_JOBS) as pool:
        for level, (entry, said) in zip(levels, pool.map(one, levels), strict=True):
            made.notes.append(f"{level.name}: {said}")
            if entry is not None:
                made.entries[level.name] = entry
    others = {level.name for level in LEVELS if level not in levels}
    entries = {name: entry for name, entry in before.items() if name in others} | made.entries
    if entries != before:
        write_manifest(folder, entries)
    kept = {level.file_name for level in LEVELS if level.name in others | made.entries.keys()}
    for path in folder.glob("libcorelm-*.so"):
        if path.name not in kept:
            path.unlink(missing_ok=True)
    return made


def _compile(compiler: Compiler, flags: tuple[str, ...], source: Path, path: Path) -> None:
    """Compiles in the sources' folder, so that no path of this machine is compiled in."""
    files = [file.name for file in source_files(source) if file.suffix == ".c"]
    with tempfile.TemporaryDirectory(prefix=".build-", dir=path.parent) as scratch:
        unfinished = Path(scratch).resolve() / path.name
        compiler.run([*flags, "-o", unfinished, *files, *_LIBRARIES], cwd=source)
        unfinished.replace(path)


def _digest_of(path: Path) -> str:
    """A digest of a file; empty where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def main() -> int:
    """The command: prints a line for each level."""
    parser = argparse.ArgumentParser(prog="python -m core.cpu.build", description="Compiles the CPU library.")
    parser.add_argument("--into", type=Path, default=FOLDER, metavar="DIR", help="default: where core looks for it")
    try:
        built = build(parser.parse_args().into)
    except CompilerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for note in built.notes:
        print(f"CPU library: {note}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
