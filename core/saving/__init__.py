"""Saving: a model's parameters as the tensors of a checkpoint, written whole or not at all.

Knows arrays, names and files; knows no tokens and no architecture: names come from the plugin's weight map, run
backwards, and what is no weight is copied as it is.
"""

from core.saving.conversion import Conversion, convert, plan_conversion
from core.saving.live import save
from core.saving.shards import DEFAULT_SHARD_SIZE
from core.saving.target import Target

__all__ = ["DEFAULT_SHARD_SIZE", "Conversion", "Target", "convert", "plan_conversion", "save"]
