"""Translates Mistral's own ``params.json`` into the keys of ``config.json``, and back, so that one config class reads
both.

The spellings are those of mistral-inference (``src/mistral_inference/args.py``) and of the files that Mistral
publishes. A key that has no counterpart keeps its name, so that it is reported as unread.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.config.base import ModelConfig
from core.errors import ConfigError

_INTEGER: tuple[type, ...] = (int,)
_NUMBER: tuple[type, ...] = (int, float)
_REQUIRED = {
    "dim": ("hidden_size", _INTEGER),
    "n_layers": ("num_hidden_layers", _INTEGER),
    "hidden_dim": ("intermediate_size", _INTEGER),
    "n_heads": ("num_attention_heads", _INTEGER),
    "n_kv_heads": ("num_key_value_heads", _INTEGER),
    "norm_eps": ("rms_norm_eps", _NUMBER),
    "vocab_size": ("vocab_size", _INTEGER),
}
_EXPERTS = {"num_experts": "num_local_experts", "num_experts_per_tok": "num_experts_per_tok"}
_YARN = {
    "factor": "factor",
    "original_max_position_embeddings": "original_max_position_embeddings",
    "beta": "beta_fast",
    "alpha": "beta_slow",
}
_LENGTHS = ("max_position_embeddings", "max_seq_len")
_CONTEXT = 128_000  # positions for which mistral-inference prepares its rotation, where the file states none
_WITHOUT_EFFECT = frozenset({"max_batch_size"})


def from_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """The ``config.json`` with the meaning of a ``params.json``.

    ``model_type`` is ``mixtral`` where there are experts, else ``mistral``. Without ``rope_theta`` the base is 1e6 for
    experts, else 1e4. Without ``sliding_window`` attention sees every key.

    Raises:
        ConfigError: a key is missing or of the wrong type, or asks for a feature that neither type has.
    """
    left = {key: value for key, value in params.items() if key not in _WITHOUT_EFFECT}
    _refuse(left)
    config: dict[str, Any] = {name: _value(left, key, kinds) for key, (name, kinds) in _REQUIRED.items()}
    experts = left.pop("moe", None)
    config["model_type"] = "mistral" if experts is None else "mixtral"
    theta = left.pop("rope_theta", None)
    theta = theta if theta is not None else (1e4 if experts is None else 1e6)
    if not _is(theta, _NUMBER):
        raise _wrong("rope_theta", _NUMBER, theta)
    config["rope_theta"] = float(theta)
    config["rms_norm_eps"] = float(config["rms_norm_eps"])
    config["sliding_window"] = _optional(left, "sliding_window", _INTEGER)
    if left.get("head_dim") is not None:
        config["head_dim"] = _value(left, "head_dim", _INTEGER)
    config["hidden_act"] = left.pop("activation", "silu")
    config["tie_word_embeddings"] = _optional(left, "tied_embeddings", (bool,)) or False
    lengths = [length for key in _LENGTHS if (length := _optional(left, key, _INTEGER)) is not None]
    config["max_position_embeddings"] = lengths[0] if lengths else _CONTEXT
    if experts is not None:
        config |= _nested(left, "moe", experts, _EXPERTS)
    yarn = left.pop("yarn", None)
    if yarn:
        config["rope_scaling"] = _yarn(left, yarn)
    if left.get("quantization"):
        config["quantization_config"] = _quantization(left.pop("quantization"))
    return {**left, **config}


def to_params(config: ModelConfig) -> dict[str, Any]:
    """The ``params.json`` with the meaning of a config, as far as the format can express it.

    The caller must read the result back to notice what it leaves out. Rotation and context are always written, because
    readers assume different defaults.
    """
    stated = config.model_dump()
    params = {key: stated[name] for key, (name, _) in _REQUIRED.items() if stated.get(name) is not None}
    rope = stated.get("rope_parameters") or {}
    same = {
        "head_dim": "head_dim",
        "sliding_window": "sliding_window",
        "max_position_embeddings": "max_position_embeddings",
    }
    params |= {key: stated[name] for key, name in same.items() if stated.get(name) is not None}
    if rope.get("rope_theta") is not None:
        params["rope_theta"] = rope["rope_theta"]
    if config.tie_word_embeddings:
        params["tied_embeddings"] = True
    if stated.get("num_local_experts") is not None:
        params["moe"] = {key: stated[name] for key, name in _EXPERTS.items()}
    if rope.get("rope_type") == "yarn":
        params["yarn"] = {key: rope[name] for key, name in _YARN.items() if rope.get(name) is not None}
        if rope.get("attention_factor") == 1:
            params["yarn"]["apply_scale"] = False
    return params


def _refuse(left: dict[str, Any]) -> None:
    """Refuses keys that would be ignored although they change what the model computes."""
    kind = left.pop("model_type", "transformer")
    if kind != "transformer":
        raise ConfigError(f"key 'model_type' is {kind!r}, which is not supported", expected="'transformer'")
    if left.get("llama_4_scaling"):
        raise ConfigError(
            "key 'llama_4_scaling' asks for queries that are scaled by their position, which is not supported",
            hint="Models of the type ministral3 need it; an installed plugin for that type may load its config.json.",
        )
    if isinstance(left.get("sliding_window"), list):
        raise ConfigError(
            "key 'sliding_window' gives each layer its own window, which is not supported",
            expected="an integer or null",
            found=repr(left["sliding_window"])[:60],
        )


def _yarn(left: dict[str, Any], yarn: Any) -> dict[str, Any]:
    scaling: dict[str, Any] = {"rope_type": "yarn", **_nested(left, "yarn", yarn, _YARN)}
    for name in ("factor", "beta_fast", "beta_slow"):
        if _is(scaling.get(name), _NUMBER):
            scaling[name] = float(scaling[name])
    if left.pop("yarn.apply_scale", True) is False:  # no correction of the attention's magnitude
        scaling["attention_factor"] = 1.0
    return scaling


def _quantization(block: Any) -> Any:
    """The block as in ``config.json``: MLX's own is unchanged, any other is under the name of its method."""
    if not isinstance(block, Mapping) or "bits" in block or "quant_method" in block:
        return block
    return {"quant_method": str(block.get("qformat_weight", "unknown")), **block}


def _nested(left: dict[str, Any], key: str, block: Any, names: Mapping[str, str]) -> dict[str, Any]:
    """The keys of an inner object that have a counterpart; the others go to ``left``, dotted."""
    if not isinstance(block, Mapping):
        raise ConfigError(f"key {key!r} is not an object", found=type(block).__name__)
    left.update({f"{key}.{name}": value for name, value in block.items() if name not in names})
    missing = [f"{key}.{name}" for name in names if key == "moe" and name not in block]
    if missing:
        raise ConfigError(f"key {missing[0]!r} is missing")
    return {names[name]: value for name, value in block.items() if name in names}


def _value(left: dict[str, Any], key: str, kinds: tuple[type, ...]) -> Any:
    if key not in left:
        raise ConfigError(f"key {key!r} is missing", hint="Compare the file with the one the model was published with.")
    value = left.pop(key)
    if not _is(value, kinds):
        raise _wrong(key, kinds, value)
    return value


def _optional(left: dict[str, Any], key: str, kinds: tuple[type, ...]) -> Any:
    if left.get(key) is None:
        left.pop(key, None)
        return None
    return _value(left, key, kinds)


def _is(value: Any, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and (kinds == (bool,) or not isinstance(value, bool))


def _wrong(key: str, kinds: tuple[type, ...], value: Any) -> ConfigError:
    expected = "true or false" if kinds == (bool,) else "an integer" if kinds == _INTEGER else "a number"
    return ConfigError(f"key {key!r} is of the wrong type", expected=expected, found=repr(value)[:60])
