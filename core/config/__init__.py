"""Reading ``config.json``: the base class that plugins extend, and what every architecture shares.

Knows the spellings that configs use; knows no files, no tensors and no architecture.
"""

from core.config.base import ModelConfig
from core.config.rope import RopeParameters, RotaryConfig

__all__ = ["ModelConfig", "RopeParameters", "RotaryConfig"]
