"""``Origin``: where a loaded model came from, for saving it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from core.checkpoint import Checkpoint
from core.registry import BoundPlugin


@dataclass(frozen=True)
class Origin:
    """What a save needs from the load.

    Attributes:
        checkpoint: the local files.
        raw_config: ``config.json``, parsed; or ``params.json``, translated to the same keys.
        plugin: the bound hooks, for their weight maps.
    """

    checkpoint: Checkpoint
    raw_config: Mapping[str, Any] = field(repr=False)
    plugin: BoundPlugin = field(repr=False)
