"""From a path or hub id to a plan, and from a plan to a ready model: the one road that every load takes.

Each stage is a function of the one before it, and nothing reads a weight before the plan has been checked. What differs
between architectures is asked of the plugin that the registry has bound.
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
