"""Writes the model card of a saved checkpoint: the source's card, what was changed, and what was left out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version

from core.checkpoint import Checkpoint
from core.errors import CoreError
from core.saving.companions import CARD, local_file
from core.saving.front_matter import FrontMatter, split_card
from core.saving.target import Target
from core.version import __version__
from core.weights import Quantization

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_RESULTS = "model-index"
"""Evaluation scores, which were measured with the source's weights."""

_OF_MODELS = re.compile(r".*\.(py|safetensors|bin|pth?|gguf|onnx|h5|msgpack|ckpt)")
_SHOWN = 12  # file names to list


def model_card(target: Target, source: Checkpoint, left: Sequence[str]) -> str:
    """The text of ``README.md``.

    Args:
        target: the checkpoint to write.
        source: the loaded checkpoint, on the local disk.
        left: names of files that were neither read nor copied.
    """
    theirs, problem = _card_of(source)
    lines, text = split_card(theirs)
    changes = _changes(source)
    notes = [f"the source's model card, which {problem}"] if problem else []
    try:
        found = FrontMatter(lines or "")
        front = found.with_changes(changes, "mlx")
        said = [f"`{key}: {found.values[key]}`" for key in changes if key in found.values and key != _RESULTS]
        notes += [f"what the source's metadata says of {', '.join(said)}"] if said else []
        notes += [f"its evaluation results (`{_RESULTS}`), which are the source's"] if _RESULTS in found.values else []
    except ValueError as error:
        front = FrontMatter("").with_changes(changes, "mlx")
        notes.append(f"the source's metadata as such, because {_line(str(error))}: it is quoted below")
        text = f"~~~yaml\n{lines}~~~\n\n{text}"
    rows = [f"| {label} | {_line(found)} |" for label, found in _facts(target, source, left, notes).items()]
    ours = "\n".join([f"---\n{front}---", "", "# Model card", "", "| | |", "|---|---|", *rows, ""])
    whole = f"{ours}\n## Model card of the source\n\n{text.strip()}\n" if text.strip() else ours
    return whole.encode("utf-8", "replace").decode()  # a file's name may not be valid text


def describe_recipe(quantized: Mapping[str, Quantization]) -> str:
    """The settings in use, the most frequent first, with the number of matrices of each."""
    counts = Counter(quantized.values()).most_common()
    return "; ".join(f"{settings} ({count} matrices)" for settings, count in counts) or "none"


def _card_of(source: Checkpoint) -> tuple[str, str | None]:
    """The source's card; and why it is left out, if it is."""
    if source.path is None or not source.has(CARD):
        return "", None
    local_file(source.path, CARD)
    try:
        return source.read_text(CARD), None
    except CoreError as error:  # a broken card must not stop the save
        return "", error.problem


def _changes(source: Checkpoint) -> dict[str, str | None]:
    """Metadata that changes; None for keys that hold for the source alone."""
    changes: dict[str, str | None] = {"library_name": "mlx", _RESULTS: None}
    name = source.source.partition("@")[0]
    if source.revision is not None and _HUB_ID.fullmatch(name):
        # The base model is the source itself; the source's card names its own base model.
        changes |= {"base_model": name, "base_model_relation": None}
    return changes


def _facts(target: Target, source: Checkpoint, left: Sequence[str], notes: Sequence[str]) -> dict[str, str]:
    revision = source.revision
    return {
        "source": source.source.rstrip("/").rpartition("/")[2] if revision is None else source.source,
        "revision": revision or "none (a local directory)",
        "model type": target.model_type,
        "layout": f"{target.layout} (read from {target.read_from})",
        "tensors": f"{sum(len(shard.tensors) for shard in target.shards):,}, {target.parameters:,} parameters",
        "size": f"{target.nbytes:,} bytes in {len(target.shards)} files",
        "quantization": describe_recipe(target.quantized),
        "left out": "; ".join([*_tensors(target), *_files(left, revision is None), *notes]) or "nothing",
        "written by": f"corelm {__version__}, MLX {version('mlx')}",
    }


def _tensors(target: Target) -> list[str]:
    reasons = Counter(target.ignored.values())
    return [f"{count:,} tensors: {reason}" for reason, count in sorted(reasons.items())]


def _files(left: Sequence[str], local: bool) -> list[str]:
    """How the card lists the files that stay behind. For a user's own directory, only code and weights are named."""
    named = [name for name in left if not local or _OF_MODELS.fullmatch(name)][:_SHOWN]
    names = ", ".join(f"`{name}`" for name in named)
    rest = len(left) - len(named)
    if not named:
        return [f"{rest:,} files of other kinds"] if rest else []
    return [f"files: {names}" + (f" and {rest:,} more" if rest else "")]


def _line(text: str) -> str:
    """Text made safe for a row of a table."""
    return " ".join(text.split()).replace("|", "\\|")
