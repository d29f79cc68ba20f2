"""A plugin bound for one load: its hooks and core's defaults answer, and nobody else's.

Each load has a plugin manager of its own, so a plugin that is imported later never answers for an earlier model.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mlx.nn as nn
import pluggy

from core import hookspecs
from core.config import ModelConfig
from core.errors import CoreError, PluginError
from core.nn import CacheSpec, Decoder
from core.registry import defaults
from core.registry.claims import Claim
from core.registry.importing import import_claim
from core.weights import WeightMap

_REQUIRED = ("parse_config", "weight_map", "build_block")
_MARK = f"{hookspecs.PROJECT}_impl"
_HOOKS = tuple(
    name for name, value in vars(hookspecs).items() if inspect.isfunction(value) and value.__module__ == hookspecs.__name__
)


class BoundPlugin:
    """The hooks of one plugin, checked: each method calls the hook of its name.

    Any error that is not core's own becomes a ``PluginError`` that names the plugin and the hook, with the original as
    its cause; so does an answer of the wrong type.
    """

    def __init__(self, claim: Claim, manager: pluggy.PluginManager) -> None:
        self.claim = claim
        self._hook = manager.hook

    @property
    def name(self) -> str:
        """How reports and errors name the plugin: its distribution, or what was registered."""
        if self.claim.distribution is None:
            return self.claim.value
        return f"{self.claim.value} ({self.claim.distribution} {self.claim.version})"

    def parse_config(self, raw: Mapping[str, Any]) -> ModelConfig:
        config = self._call("parse_config", ModelConfig, config=dict(raw))
        assert isinstance(config, ModelConfig)
        return config

    def weight_map(self, config: ModelConfig, layout: str) -> WeightMap | None:
        answer = self._call("weight_map", WeightMap | None, config=config, layout=layout)
        return answer if isinstance(answer, WeightMap) else None

    def build_block(self, config: ModelConfig, index: int) -> nn.Module:
        return self._call("build_block", nn.Module, config=config, index=index)

    def build_model(self, config: ModelConfig, blocks: Sequence[nn.Module]) -> Decoder:
        model = self._call("build_model", Decoder, config=config, blocks=blocks)
        assert isinstance(model, Decoder)
        return model

    def make_cache(self, config: ModelConfig, index: int) -> CacheSpec:
        spec = self._call("make_cache", CacheSpec, config=config, index=index)
        assert isinstance(spec, CacheSpec)
        return spec

    def quantize_module(self, config: ModelConfig, path: str, module: nn.Module) -> bool:
        return bool(self._call("quantize_module", bool, config=config, path=path, module=module))

    def model_loaded(self, model: nn.Module, report: Any) -> None:
        self._call("model_loaded", list, model=model, report=report)

    def _call(self, hook: str, expected: Any, **arguments: Any) -> Any:
        try:
            answer = getattr(self._hook, hook)(**arguments)
        except CoreError:
            raise
        except Exception as error:
            raise PluginError(
                f"plugin {self.claim} failed in its hook {hook}: {type(error).__name__}: {error}",
                hint="This is a fault of the plugin; report it to its authors.",
            ) from error
        if not isinstance(answer, expected):
            raise PluginError(
                f"plugin {self.claim} answered its hook {hook} with a {type(answer).__name__}",
                expected=getattr(expected, "__name__", str(expected)),
            )
        return answer


def bind(claim: Claim) -> BoundPlugin:
    """Imports a claim's plugin, checks it against the contract, and binds it.

    Raises:
        PluginError: it cannot be imported; a required hook is missing, misspelt or unmarked; a hook has an argument that
            the contract has not.
    """
    plugin = import_claim(claim)
    _check_names(claim, plugin)
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(defaults)
    try:
        manager.register(plugin, name=claim.value)
    except pluggy.PluginValidationError as error:
        raise PluginError(
            f"plugin {claim} breaks the contract: {' '.join(str(error).split())}", hint="See core/hookspecs.py."
        ) from error
    return BoundPlugin(claim, manager)


def _check_names(claim: Claim, plugin: Any) -> None:
    marked, unmarked = set(), []
    for name, value in _functions(plugin):
        if hasattr(value, _MARK):
            marked.add(getattr(value, _MARK).get("specname") or name)
        elif name in _HOOKS:
            unmarked.append(name)
    for name in sorted(marked - set(_HOOKS)):
        close = difflib.get_close_matches(name, _HOOKS, n=1)
        raise PluginError(
            f"plugin {claim} marks {name!r} as a hook, and there is no such hook",
            expected=", ".join(_HOOKS),
            hint=f"Did you mean {close[0]!r}?" if close else None,
        )
    if unmarked:
        raise PluginError(
            f"plugin {claim} defines {', '.join(unmarked)} without marking it as a hook",
            hint="Put @core.hookimpl above it, or give it another name.",
        )
    missing = [name for name in _REQUIRED if name not in marked]
    if missing:
        raise PluginError(
            f"plugin {claim} lacks the required hook{'s' if len(missing) > 1 else ''} {', '.join(missing)}",
            found=", ".join(sorted(marked)) or "no function marked with @core.hookimpl",
        )


def _functions(plugin: Any) -> list[tuple[str, Callable[..., Any]]]:
    found = []
    for name in dir(plugin):
        if name.startswith("__"):
            continue
        value = getattr(plugin, name, None)
        if inspect.isroutine(value):
            found.append((name, value))
    return found
