"""Prompts that need not be processed twice: caches kept for their prefixes in memory, and saved to files.

Knows caches, ids and files; knows no text and no architecture.
"""

from core.prompt_cache.file import load_cache, save_cache
from core.prompt_cache.prefix import PrefixCache

__all__ = ["PrefixCache", "load_cache", "save_cache"]
