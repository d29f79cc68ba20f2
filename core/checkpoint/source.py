"""Resolves what the user passed as a checkpoint: a directory, a bundled demo, or a repository on the hub.

It looks at the file system; it opens no file and sends no request.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from core.checkpoint.bounded_json import quoted
from core.checkpoint.layout import GGUF_HINT
from core.errors import CheckpointError, UsageError

DEMOS = Path(__file__).resolve().parent.parent / "demos"

_LONGEST = 4096  # characters of a path on Linux

_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"
_HUB_ID = re.compile(rf"{_PART}/{_PART}")
_URL = re.compile(r"https?://[^/]+/(?P<repo>[^/]+/[^/?#]+)(?:/(?:tree|resolve|blob)/(?P<revision>[^/?#]+))?.*")
_FILES = (".safetensors", ".json", ".gguf", ".bin", ".pt", ".pth", ".npz", ".py")


@dataclass(frozen=True, slots=True)
class HubId:
    """A repository on the hub: ``org/name``, with the branch, tag or commit if one was given."""

    repo: str
    revision: str | None


def resolve(source: str | os.PathLike[str], revision: str | None = None) -> Path | HubId:
    """The directory or hub repository that `source` names. See `core.checkpoint.open_checkpoint`.

    Raises:
        CheckpointError: a path that does not exist, or is a file; an unknown demo.
        UsageError: a revision for a directory, or two revisions.
    """
    text = os.fspath(source) if isinstance(source, str | os.PathLike) else None
    if not isinstance(text, str):
        raise UsageError("a checkpoint is named by a str or a path", found=type(source).__name__)
    if isinstance(source, str):
        if source.startswith("demo:"):
            return _no_revision(_demo(source), revision)
        if source.startswith(("http://", "https://")):
            raise _url(source)
    if not text or "\0" in text:
        raise CheckpointError("names no checkpoint", found=quoted(text), hint="pass a directory or a hub id, org/name")
    try:
        path = Path(text).expanduser() if text.startswith("~") else Path(text)
    except RuntimeError:  # no user of that name, or no home
        raise CheckpointError("there is no such home directory", where=_clipped(text), hint="pass a path") from None
    kind = _kind(path)
    if kind == "directory":
        return _no_revision(path, revision)
    if kind == "file" and path.suffix == ".gguf":
        raise CheckpointError("is a GGUF file, and a checkpoint is a directory", where=path, hint=GGUF_HINT)
    if kind == "file":
        raise CheckpointError(
            "is a file, and a checkpoint is a directory",
            where=path,
            hint=f"pass the directory that holds it: {path.parent}",
        )
    if isinstance(source, str) and not _looks_like_path(source):
        repo, _, suffix = source.partition("@")
        if suffix and revision not in (None, suffix):
            raise UsageError("two revisions were given", where=source, expected=suffix, found=revision)
        if (
            _HUB_ID.fullmatch(repo)
            and not ({"--", ".."} & set(re.findall(r"--|\.\.", repo)))
            and (suffix or "@" not in source)
        ):
            return HubId(repo, suffix or revision)
    raise CheckpointError("there is no such directory", where=_clipped(text), hint=_nearby(path))


def _kind(path: Path) -> str | None:
    """What is at `path`: a ``"directory"``, a ``"file"`` (of any other kind), or None."""
    try:
        if path.is_dir():
            return "directory"
        return "file" if path.exists() else None
    except PermissionError as exc:
        raise CheckpointError(
            "is not accessible to this user", where=path, hint="check the permissions of its parents"
        ) from exc
    except OSError:  # a name too long for the file system, or a loop of links
        return None


def _looks_like_path(source: str) -> bool:
    repo = source.partition("@")[0]
    return source.startswith(("/", ".", "~")) or "\\" in source or repo.count("/") != 1 or repo.endswith(_FILES)


def _demo(source: str) -> Path:
    name = source.removeprefix("demo:")
    available = sorted(path.name for path in DEMOS.iterdir() if path.is_dir()) if DEMOS.is_dir() else []
    available = [demo for demo in available if not demo.startswith(("_", "."))]
    if name not in available:
        listed = ", ".join(f"demo:{demo}" for demo in available)
        hint = f"there are: {listed}" if listed else "this installation has no demo models"
        raise CheckpointError("there is no such demo model", where=quoted(source), hint=hint)
    return DEMOS / name


def _url(source: str) -> CheckpointError:
    match = _URL.fullmatch(source)
    hint = "pass the repository's id, org/name, or download it and pass the directory"
    if match:
        hint = f"pass the repository's id: {match['repo']}" + (f"@{match['revision']}" if match["revision"] else "")
    return CheckpointError("is a URL, not a directory or hub id", where=source, hint=hint)


def _no_revision(path: Path, revision: str | None) -> Path:
    if revision is not None:
        raise UsageError(
            "a revision was given for a directory", where=path, found=revision, hint="only hub ids have revisions"
        )
    return path


def _clipped(text: str) -> str:
    """A name for an error message: long enough for a path, clipped for a whole text passed by mistake."""
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _nearby(path: Path) -> str:
    """A hint: the part of the path that exists, and the form of a hub id."""
    parent = path.absolute()
    try:
        while not parent.exists():
            parent = parent.parent
    except OSError:
        parent = parent.parent
    return f"{parent} exists, the rest does not; a model on the hub is named org/name"
