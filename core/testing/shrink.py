"""Shrinks a published config to a tiny model with the same structure.

Only sizes change, under transformers' names, and the changes are reported.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

_WIDTHS = {"hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 96, "vocab_size": 256}
_LAYERS = 3
WINDOW = 8
_HEADS = 4
_LIMITS = {
    "max_position_embeddings": 512,
    "num_local_experts": 8,
    "num_experts": 8,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "sliding_window": WINDOW,
}
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id")


def shrunk(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with tiny sizes. Grouped heads stay grouped, a window stays a window, nested configs shrink as well."""
    small = copy.deepcopy(dict(raw))
    for key, limit in {**_WIDTHS, **_LIMITS}.items():
        if _is_size(small.get(key)):
            small[key] = min(small[key], limit)
    if _is_size(small.get("num_hidden_layers")):
        small["num_hidden_layers"] = min(small["num_hidden_layers"], _LAYERS)
    heads: Any = raw.get("num_attention_heads")
    shared: Any = raw.get("num_key_value_heads")
    if _is_size(heads):
        small["num_attention_heads"] = min(heads, _HEADS)
        if _is_size(shared):
            grouped = heads > shared
            small["num_key_value_heads"] = max(1, small["num_attention_heads"] // (2 if grouped else 1))
            small["num_key_value_heads"] = min(small["num_key_value_heads"], shared)
    if _is_size(small.get("head_dim")):
        small["head_dim"] = min(small["head_dim"], 24)  # not hidden_size / heads, so that confusing the two shows
    if isinstance(small.get("layer_types"), list):
        small["layer_types"] = _first_of_each(small["layer_types"], small.get("num_hidden_layers", _LAYERS))
    vocabulary = small.get("vocab_size", _WIDTHS["vocab_size"])
    for key in _TOKENS:
        ids = small.get(key)
        if isinstance(ids, list) or (_is_size(ids) and ids >= vocabulary):
            small[key] = None
    for key, value in small.items():
        if key.endswith("_config") and isinstance(value, Mapping) and key != "quantization_config":
            small[key] = shrunk(value)
    return small


def changes(raw: Mapping[str, Any], small: Mapping[str, Any], above: str = "") -> list[str]:
    """What ``shrunk`` has changed, one line for each key."""
    lines = []
    for key, value in small.items():
        before = raw.get(key)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            lines += changes(before, value, f"{above}{key}.")
        elif value != before:
            lines.append(f"{above}{key}: {before} → {value}")
    return lines


def _first_of_each(kinds: list[Any], count: int) -> list[Any]:
    """The first ``count`` entries; the last of them is replaced if a kind would be missing otherwise."""
    first = kinds[:count]
    missing = [kind for kind in dict.fromkeys(kinds) if kind not in first]
    return [*first[: count - len(missing)], *missing] if 0 < len(missing) < count else first


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0
