"""``BoundPlugin``: one plugin bound for one load. Only its hooks, and core's defaults, are called.

Each load has a plugin manager of its own, so a plugin that is imported later does not change an earlier model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import mlx.nn as nn
import pluggy

from core import hookspecs
from core.config import ModelConfig
from core.errors import CoreError, PluginError
from core.nn import CacheSpec, Decoder
from core.registry import contract, defaults
from core.registry.choose import choose
from core.registry.claim import Claim
from core.registry.importing import brief, import_claim
from core.weights import WeightMap

_Answer = TypeVar("_Answer")
_asked: ContextVar[BoundPlugin | None] = ContextVar("core_asked_plugin", default=None)
"""The plugin whose hook is running."""


class BoundPlugin:
    """The hooks of one plugin, checked: each method calls the hook of its name.

    An error inside the plugin becomes a ``PluginError`` that names the plugin and the hook, with the original as its
    cause. So does a result of the wrong type. The errors of ``core.errors`` about the checkpoint pass through.
    """

    def __init__(self, claim: Claim, manager: pluggy.PluginManager) -> None:
        self.claim = claim
        self.manager = manager
        self.delegates: dict[str, BoundPlugin] = {}

    @property
    def name(self) -> str:
        """How reports name the plugin: its module, and the distribution that ships it."""
        own = self.claim.value
        if self.claim.distribution is not None:
            own += f" ({self.claim.distribution} {self.claim.version or '(no version)'})"
        return " with ".join([own, *(delegate.name for delegate in self.delegates.values())])

    def parse_config(self, raw: Mapping[str, Any]) -> ModelConfig:
        # A copy, so that the plugin cannot change the file's own keys, from which the unread ones are computed.
        return self._ask("parse_config", ModelConfig, config=copy.deepcopy(dict(raw)))

    def weight_map(self, config: ModelConfig, layout: str) -> WeightMap | None:
        answer = self._call("weight_map", config=config, layout=layout)
        if answer is None:
            return None
        checked = self._checked("weight_map", WeightMap, answer)
        with self._blamed("weight_map"):
            checked.expand()  # a map that cannot be expanded is the plugin's fault, not the checkpoint's
        return checked

    def build_block(self, config: ModelConfig, index: int) -> nn.Module:
        return self._ask("build_block", nn.Module, config=config, index=index)

    def build_model(self, config: ModelConfig, blocks: Sequence[nn.Module]) -> Decoder:
        return self._ask("build_model", Decoder, config=config, blocks=blocks)

    def make_cache(self, config: ModelConfig, index: int) -> CacheSpec:
        return self._ask("make_cache", CacheSpec, config=config, index=index)

    def quantize_module(self, config: ModelConfig, path: str, module: nn.Module) -> bool:
        return self._ask("quantize_module", bool, config=config, path=path, module=module)

    def model_loaded(self, model: nn.Module, report: Any) -> None:
        self._call("model_loaded", model=model, report=report)
        for delegate in self.delegates.values():
            delegate.model_loaded(model, report)

    def _ask(self, hook: str, expected: type[_Answer], **arguments: Any) -> _Answer:
        return self._checked(hook, expected, self._call(hook, **arguments))

    def _call(self, hook: str, **arguments: Any) -> Any:
        with self._blamed(hook):
            return getattr(self.manager.hook, hook)(**arguments)

    @contextmanager
    def _blamed(self, hook: str) -> Iterator[None]:
        """Errors inside this block are reported as faults of the plugin."""
        token = _asked.set(self)
        try:
            yield
        except KeyboardInterrupt:
            raise
        except PluginError as error:
            raise type(error)(
                f"plugin {self.claim}, hook {hook}: {error.problem}",
                expected=error.expected,
                found=error.found,
                hint=error.hint,
            ) from error
        except CoreError:
            raise
        except BaseException as error:  # SystemExit too: a plugin does not end the program
            raise PluginError(
                f"plugin {self.claim} failed in its hook {hook}: {brief(error)}",
                hint="This is a fault of the plugin; report it to its authors.",
            ) from error
        finally:
            _asked.reset(token)

    def _checked(self, hook: str, expected: type[_Answer], answer: Any) -> _Answer:
        if isinstance(answer, expected):
            return answer
        raise PluginError(
            f"plugin {self.claim} returned a wrong value from its hook {hook}",
            expected=f"{expected.__module__}.{expected.__qualname__}".removeprefix("builtins."),
            found=type(answer).__qualname__,
        )


def bind(claim: Claim) -> BoundPlugin:
    """Imports a claim's plugin, checks it against the contract, and binds it.

    Warns (``FutureWarning``) of hooks and arguments that the plugin implements and a later core will not call.

    Raises:
        PluginError: it cannot be imported; a required hook is missing, misspelt or unmarked; a hook has an argument
            that the contract does not have.
    """
    plugin = import_claim(claim)
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    try:
        contract.check(claim, plugin)
        manager.register(plugin, name=claim.value)
    except (KeyboardInterrupt, CoreError):
        raise
    except BaseException as error:  # an error of pluggy, or of an attribute of the plugin that was read
        raise PluginError(
            f"plugin {claim} breaks the contract: {' '.join(str(error).split())}", hint="See core/hookspecs.py."
        ) from error
    contract.warn_of_deprecated(claim, plugin)
    # Register core's after the plugin: pluggy calls hooks marked trylast in the order of registration, and core's come
    # last.
    manager.register(defaults)
    return BoundPlugin(claim, manager)


def delegate(model_type: str) -> BoundPlugin:
    """The plugin for another type, bound; for a plugin whose model contains a model of that type.

    It is chosen like the plugin of a load of its own, and bound once for the load whose hook asks. Two loads never
    share it, and a later registration does not change an earlier model. Reports name it beside the plugin that asked.

    Raises:
        UnknownModelTypeError, PluginError: as for a load of that type.
    """
    asked = _asked.get()
    known = {} if asked is None else asked.delegates
    if model_type not in known:
        known[model_type] = bind(choose(model_type))
    return known[model_type]
