"""Reads ``config.json``: the base class that plugins extend, and the parts that architectures share."""

from core.config.base import ModelConfig
from core.config.rope import RopeParameters, RotaryConfig

__all__ = ["ModelConfig", "RopeParameters", "RotaryConfig"]
