"""Caches of processed prompts, so that a prompt's beginning is processed only once: in memory by prefix, and in
files."""

from core.prompt_cache.file import load_cache, save_cache
from core.prompt_cache.prefix import PrefixCache

__all__ = ["PrefixCache", "load_cache", "save_cache"]
