"""Copies a built-in plugin's modules under another name.

The sources are the installed plugin's own, so a new package starts from code that core itself runs. Only the weight map
is a template, because the built-in ones have further layouts, which a new architecture does not have. Numbers that are
defaults of the built-in architecture are left out: in a new one, an absent key is an error until its author decides.
"""

from __future__ import annotations

import re
from string import Template

from core.registry import own
from core.scaffold.names import Names

LIKE = ("mistral", "mixtral")

_DEFAULT = re.compile(r"^(    \w+: Positive(?:Int|Float)) = [\d_.e-]+$", re.MULTILINE)
_DOCSTRING = re.compile(r'\A"""[\s\S]*?"""\n')
_SUMMARIES = {
    "mistral": "a decoder with grouped-query attention, an optional sliding window, rotary positions and SwiGLU",
    "mixtral": "a decoder with grouped-query attention, rotary positions and a sparse mixture of SwiGLU experts",
}
_CONFIG_DOCSTRING = '''"""$title's ``config.json``.

A field has a default only where the reference implementation has one. A file without its sizes is damaged: filling them
in would only turn one clear error into many wrong shapes.
"""
'''
# Parts that hold for the built-in architecture only; each occurs in its config exactly once.
_CONFIG_EDITS = {
    "mistral": (
        ('    causal_architectures: ClassVar[frozenset[str]] = frozenset({"MistralForCausalLM"})\n\n', ""),
        ("from typing import Any, ClassVar, Literal", "from typing import Any, Literal"),
        ("an absent key means 4096, ``null`` means all", "an absent key and ``null`` both mean all"),
        ("sliding_window: PositiveInt | None = 4_096", "sliding_window: PositiveInt | None = None"),
    ),
    "mixtral": (
        ('    causal_architectures: ClassVar[frozenset[str]] = frozenset({"MixtralForCausalLM"})\n', ""),
        ("    default_rope_theta: ClassVar[float] = 1e6\n", ""),
    ),
}


def plugin_modules(names: Names, like: str, weights: str) -> dict[str, str]:
    """File → source, all in the package's directory; ``weights`` is the template of the weight map."""
    sources = {file.name: file.read_text(encoding="utf-8") for file in sorted((own.DIRECTORY / like).glob("*.py"))}
    sources["__init__.py"] = _with_docstring(sources["__init__.py"], f'"""$title: {_SUMMARIES[like]}."""\n')
    sources["config.py"] = _config(sources["config.py"], like)
    sources["weights.py"] = weights
    return {name: _renamed(source, names, like.capitalize()) for name, source in sources.items()}


def _config(source: str, like: str) -> str:
    for theirs, ours in _CONFIG_EDITS[like]:
        assert source.count(theirs) == 1, f"{theirs!r} is not in {like}'s config"
        source = source.replace(theirs, ours)
    return _with_docstring(_DEFAULT.sub(r"\1", source), _CONFIG_DOCSTRING)


def _with_docstring(source: str, docstring: str) -> str:
    return docstring + _DOCSTRING.sub("", source, count=1)


def _renamed(source: str, names: Names, theirs: str) -> str:
    source = source.replace(f"{theirs}Config", "${prefix}Config")
    source = source.replace(f"of a {theirs} model", "of one $title model").replace(theirs, "$title")
    return Template(source).substitute(prefix=names.prefix, title=names.title)
