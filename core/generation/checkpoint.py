"""Reads ``generation_config.json``: settings, stop strings, and the names of keys that have no effect here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from core.errors import UsageError
from core.sampling.kinds import Count, Number, shown
from core.sampling.setting import Setting
from core.sampling.settings import SETTINGS

_STATED = [setting for setting in SETTINGS.values() if setting.keys]
_READ = {key for setting in _STATED for key in setting.keys}
_READ |= {"do_sample", "max_new_tokens", "stop_strings", "eos_token_id"}
# Keys of transformers' GenerationConfig that do not change which tokens come: bookkeeping, caches, speed, outputs, a
# limit on the length that whoever generates sets; and what counts only beside other keys, which are named then.
_HARMLESS = frozenset(
    {
        "_from_model_config",
        "assistant_confidence_threshold",
        "assistant_early_exit",
        "assistant_ensemble_weight",
        "assistant_lookbehind",
        "bos_token_id",
        "cache_config",
        "cache_implementation",
        "compile_config",
        "continuous_batching_config",
        "decoder_start_token_id",
        "disable_compile",
        "diversity_penalty",
        "early_stopping",
        "is_assistant",
        "length_penalty",
        "low_memory",
        "max_cache_len",
        "max_length",
        "max_matching_ngram_size",
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "output_attentions",
        "output_hidden_states",
        "output_logits",
        "output_scores",
        "pad_token_id",
        "prefill_chunk_size",
        "prompt_lookup_num_tokens",
        "remove_invalid_values",
        "renormalize_logits",
        "return_dict_in_generate",
        "speculation_type",
        "target_lookbehind",
        "transformers_version",
        "trust_remote_code",
        "use_cache",
        "use_mtp",
    }
)
# Values with which a key that is not read does nothing, beside null and false.
_NEUTRAL: dict[str, tuple[float, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "penalty_alpha": (0,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "guidance_scale": (1,),
    "encoder_repetition_penalty": (1,),
    "encoder_no_repeat_ngram_size": (0,),
}


def checkpoint_settings(generation_config: Mapping[str, Any], vocab_size: int | None = None) -> dict[str, Any]:
    """The settings that a ``generation_config.json`` names.

    The temperature only where ``do_sample`` is true: without, transformers takes the likeliest token. ``min_length``
    only without ``min_new_tokens``, as there.

    Args:
        vocab_size: ids beyond it are left out: nobody could choose them. None: there is no limit.

    Raises:
        UsageError: a value of another kind, or out of range.
    """
    found = {}
    drawn = generation_config.get("do_sample") is True
    for setting in _STATED:
        if drawn or setting.name != "temperature":
            found[setting.name] = _stated(generation_config, setting, vocab_size)
    if drawn and found["temperature"] is None:
        found["temperature"] = 1.0
    if found["min_new_tokens"] is not None:
        found["min_length"] = None
    return {name: value for name, value in found.items() if value is not None}


def checkpoint_stops(generation_config: Mapping[str, Any]) -> list[str]:
    """The stop strings that a ``generation_config.json`` names.

    Raises:
        UsageError: they are no strings, or one is empty.
    """
    value = generation_config.get("stop_strings")
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise UsageError(
            "generation_config.json: key 'stop_strings' is not a string or a list of strings",
            found=shown(value),
            hint="Give stop yourself.",
        )
    return stops


def unread_generation_keys(generation_config: Mapping[str, Any]) -> list[str]:
    """Keys of a ``generation_config.json`` that may change the output, and that nobody reads."""
    known = _READ | _HARMLESS
    return sorted(
        name
        for name, value in generation_config.items()
        if name not in known and value is not None and value is not False and value not in _NEUTRAL.get(name, ())
    )


def _exists(item: Any, vocab_size: int | None) -> bool:
    """False for an id, or a sequence with an id, that the vocabulary has not."""
    ids = [part for part in (item if isinstance(item, list) else [item]) if type(part) is int]
    return all(token >= 0 and (vocab_size is None or token < vocab_size) for token in ids)


def checkpoint_number(generation_config: Mapping[str, Any], key: str, kind: Callable[[float], Any]) -> Any:
    """One number of a ``generation_config.json``; None where it is absent or null.

    Raises:
        UsageError: it is no number, or larger than any float.
    """
    value = generation_config.get(key)
    if value is None:
        return None
    # An integer of JSON has any number of digits; NaN is not below anything.
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= sys.float_info.max:
        raise UsageError(f"generation_config.json: key {key!r} is not a number", found=shown(value))
    return kind(value)


def _stated(generation_config: Mapping[str, Any], setting: Setting, vocab_size: int | None) -> Any:
    """What a ``generation_config.json`` says of a setting; None where it says nothing."""
    key = next((key for key in setting.keys if generation_config.get(key) is not None), None)
    if key is None:
        return None
    value = generation_config[key]
    if isinstance(setting.kind, Number | Count):
        value = checkpoint_number(generation_config, key, float if isinstance(setting.kind, Number) else int)
    elif isinstance(value, list):
        value = [item for item in value if _exists(item, vocab_size)]
    try:
        setting.kind.checked(setting.name, value)
    except UsageError as error:
        raise UsageError(
            f"generation_config.json: {error.problem}",
            expected=error.expected,
            found=error.found,
            hint=f"Give {setting.name} yourself.",
        ) from None
    return value
