"""Loads a model: from a path or hub id to a plan, and from a plan to a ready model. Every load takes this way.

Each stage is a function of the one before it. No weight is read before the plan has been checked. The plugin that the
registry has bound provides everything specific to an architecture.
"""

from core.loading.entry import load, load_config, load_tokenizer, plan
from core.loading.memory import MemoryFit, MemoryWarning, memory_fit, stated_context
from core.loading.origin import Origin
from core.loading.prepared import Prepared, prepare, prepare_opened
from core.loading.report import LoadReport
from core.loading.skeleton import BuiltModel, build

__all__ = [
    "BuiltModel",
    "LoadReport",
    "MemoryFit",
    "MemoryWarning",
    "Origin",
    "Prepared",
    "build",
    "stated_context",
    "load",
    "load_config",
    "load_tokenizer",
    "memory_fit",
    "plan",
    "prepare",
    "prepare_opened",
]
