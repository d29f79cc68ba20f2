"""Where a model came from, for whoever writes it back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from core.checkpoint import Checkpoint
from core.registry import BoundPlugin


@dataclass(frozen=True)
class Origin:
    """What a load knew that a save needs.

    Attributes:
        checkpoint: the local files.
        raw_config: ``config.json`` as parsed, or ``params.json`` in its words.
        plugin: the bound hooks, for their weight maps.
    """

    checkpoint: Checkpoint
    raw_config: Mapping[str, Any] = field(repr=False)
    plugin: BoundPlugin = field(repr=False)
