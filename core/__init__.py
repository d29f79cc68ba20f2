"""core: load a language model on MLX by its ``model_type``, with one small plugin for each architecture.

    import core
    lm = core.load("path or hub id")
    print(lm.generate("To be, or").text)

Names are imported when first used, so ``import core`` is cheap and imports no plugin.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from core.version import PLUGIN_API, __version__

if TYPE_CHECKING:
    from core.batching import Batch
    from core.benchmark import Benchmark, bench
    from core.chat import Conversation
    from core.evaluation import Evaluation, evaluate
    from core.generation import GenerationResult, Processor, Sampling, generate_tokens
    from core.hookspecs import hookimpl
    from core.language_model import LanguageModel
    from core.loading import build, load, load_config, load_tokenizer, plan
    from core.nn import Cache, CacheSpec
    from core.prompt_cache import PrefixCache, load_cache, save_cache
    from core.registry import delegate, register, unregister
    from core.saving import convert, save
    from core.weights import Plan

_HOMES = {
    "Batch": "core.batching",
    "Benchmark": "core.benchmark",
    "Cache": "core.nn",
    "CacheSpec": "core.nn",
    "Conversation": "core.chat",
    "Evaluation": "core.evaluation",
    "GenerationResult": "core.generation",
    "LanguageModel": "core.language_model",
    "Plan": "core.weights",
    "PrefixCache": "core.prompt_cache",
    "Processor": "core.generation",
    "Sampling": "core.generation",
    "bench": "core.benchmark",
    "build": "core.loading",
    "convert": "core.saving",
    "delegate": "core.registry",
    "evaluate": "core.evaluation",
    "generate_tokens": "core.generation",
    "hookimpl": "core.hookspecs",
    "load": "core.loading",
    "load_cache": "core.prompt_cache",
    "load_config": "core.loading",
    "load_tokenizer": "core.loading",
    "plan": "core.loading",
    "register": "core.registry",
    "save": "core.saving",
    "save_cache": "core.prompt_cache",
    "unregister": "core.registry",
}

__all__ = [
    "Batch",
    "Benchmark",
    "Cache",
    "CacheSpec",
    "Conversation",
    "Evaluation",
    "GenerationResult",
    "LanguageModel",
    "PLUGIN_API",
    "Plan",
    "PrefixCache",
    "Processor",
    "Sampling",
    "__version__",
    "bench",
    "build",
    "convert",
    "delegate",
    "evaluate",
    "generate_tokens",
    "hookimpl",
    "load",
    "load_cache",
    "load_config",
    "load_tokenizer",
    "plan",
    "register",
    "save",
    "save_cache",
    "unregister",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'core' has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(home), name)
    except ImportError:
        from core.installation import check_mlx

        check_mlx()  # raises an error that says what to do if MLX cannot be imported
        raise
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
