"""Reads a checkpoint's config, chooses the plugin that claims it, and lets the plugin read it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from core.checkpoint import Checkpoint
from core.checkpoint.bounded_json import shown
from core.checkpoint.layout import ADAPTER_HINT, GGUF_HINT, only_gguf
from core.config import ModelConfig
from core.config.native import from_params
from core.errors import CheckpointError, ConfigError, CoreError
from core.registry import BoundPlugin, bind, choose

_ADAPTER = "adapter_config.json"
_T = TypeVar("_T")


def configure(checkpoint: Checkpoint, plugin: Any, strict: bool) -> tuple[dict[str, Any], BoundPlugin, ModelConfig]:
    """A checkpoint's config as ``read_config`` returns it, its plugin, and the plugin's config object."""
    raw = read_config(checkpoint)
    where = checkpoint.where(checkpoint.config_name)
    bound, config = configured(raw, where, plugin)
    unread = unread_keys(checkpoint, raw, config)
    if strict and unread:
        raise ConfigError(
            f"these config keys are not read: {', '.join(map(repr, unread))}",
            where=where,
            hint=f"Without strict they are ignored; or let {bound.name} read them or declare them harmless.",
        )
    return raw, bound, config


def unread_keys(checkpoint: Checkpoint, raw: dict[str, Any], config: ModelConfig) -> list[str]:
    """Keys of a checkpoint's configs that are not read; those of its generation config have the file's name as a
    prefix."""
    generation = read_generation_config(checkpoint)
    if not generation:
        return config.unread_keys(raw)
    from core.generation import unread_generation_keys

    return config.unread_keys(raw) + [f"generation_config.{key}" for key in unread_generation_keys(generation)]


def read_generation_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """``generation_config.json``, parsed; empty if there is none."""
    name = "generation_config.json"
    return dict(checkpoint.read_json(name)) if checkpoint.has(name) else {}


def read_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """``config.json``, parsed; or ``params.json``, translated to the same keys.

    Raises:
        CheckpointError: there is none; the message says what the directory is instead, if its files show it.
        ConfigError: it is not a JSON object.
    """
    if not checkpoint.has(checkpoint.config_name):
        _refuse_foreign(checkpoint)
    raw: dict[str, Any] = checkpoint.read_json(checkpoint.config_name)
    if checkpoint.config_name == "config.json":
        return raw
    return located(lambda: from_params(raw), checkpoint.where(checkpoint.config_name))


def _refuse_foreign(checkpoint: Checkpoint) -> None:
    """Raises an error that says what a directory without a config is, if its files show it.

    Raises:
        CheckpointError: it is an adapter, or holds GGUF files only.
    """
    if checkpoint.has(_ADAPTER):
        about = checkpoint.read_json(_ADAPTER)
        base = about.get("base_model_name_or_path") or about.get("model")  # as PEFT spells it, and mlx-lm
        named = f", for the base model {shown(base)}" if isinstance(base, str) else ""
        raise CheckpointError(
            f"is an adapter, not a model{named}", where=checkpoint.where(), found=_ADAPTER, hint=ADAPTER_HINT
        )
    gguf = only_gguf(checkpoint.files)
    if gguf:
        raise CheckpointError(
            "holds no model in safetensors format, only GGUF",
            where=checkpoint.where(),
            found=", ".join(gguf[:5]) + (f" and {len(gguf) - 5:,} more" if len(gguf) > 5 else ""),
            hint=GGUF_HINT,
        )


def configured(raw: dict[str, Any], where: str, plugin: Any) -> tuple[BoundPlugin, ModelConfig]:
    """The plugin for a config's ``model_type``, and the config object that it makes."""
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise ConfigError(
            "key 'model_type' is missing" if model_type is None else "key 'model_type' is not a string",
            where=where,
            expected='for instance "mistral"',
            found=None if model_type is None else repr(model_type),
            hint="It names the architecture, and nothing loads without it.",
        )
    bound = located(lambda: bind(choose(model_type, plugin)), where)
    return bound, located(lambda: bound.parse_config(raw), where)


def located(action: Callable[[], _T], where: str) -> _T:
    """Runs ``action``. An error of core's that names no place gets ``where``."""
    try:
        return action()
    except CoreError as error:
        if error.where is None:
            error.where = where
            error.args = (error._render(),)
        raise
