"""Saving: writes a model's parameters as the tensors of a checkpoint, completely or not at all.

Tensors get their names from the plugin's weight map, run backwards. Other files are copied from the source.
"""

from core.saving.conversion import Conversion, convert, plan_conversion
from core.saving.live import save
from core.saving.shards import DEFAULT_SHARD_SIZE
from core.saving.target import Target

__all__ = ["DEFAULT_SHARD_SIZE", "Conversion", "Target", "convert", "plan_conversion", "save"]
