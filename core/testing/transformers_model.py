"""A random model made by transformers, and its results: logits, hidden states and greedy continuations.

Only ``core.testing.reference`` imports this module, because it needs torch and transformers. It never runs code of a
repository.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from core.errors import ConfigError, UsageError
from core.testing.reference_data import ARRAYS

_LARGEST = 50_000_000  # parameters: a reference is committed, and loaded in every test run
_ATTEMPTS = 20
_STEPS = 24
_SHORT = 5
_ROUNDING = 2e-5  # of the largest logit: more than float32's own rounding, so some choice is nearly tied
_GAP = 1e-3  # between the best two logits of a greedy step, in units of the largest


def default_config(model_type: str) -> dict[str, Any]:
    """transformers' own default config of a type.

    Raises:
        ConfigError: it has no such type.
    """
    try:
        config = transformers.AutoConfig.for_model(model_type)
    except (ValueError, KeyError) as error:
        raise ConfigError(
            f"transformers {transformers.__version__} has no model_type {model_type!r}",
            hint="Give a config.json, or install the transformers that has it.",
        ) from error
    found: dict[str, Any] = {**config.to_dict(), "model_type": model_type}
    return found


def write(raw: Mapping[str, Any], out: Path, *, where: str, seed: int, length: int) -> list[str]:
    """Makes a model of a config, computes its reference, and writes both. Returns remarks for the user."""
    kind, config = _kind_of(raw, where)
    for attempt in range(seed, seed + _ATTEMPTS):
        model = _random_model(kind, config, attempt)
        arrays, facts = _compute(model, config, attempt, length)
        if (facts["rounding"] or 0) <= _ROUNDING and facts["smallest_gap"] >= _GAP:
            break
    else:
        raise ConfigError(
            f"none of {_ATTEMPTS} random models has numbers that another implementation could be held to",
            where=where,
            found=f"rounding of {facts['rounding']}, best tokens {facts['smallest_gap']} apart, of the largest logit",
            hint="Try another --seed or a shorter --length.",
        )
    transformers.utils.logging.disable_progress_bar()
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    (out / "generation_config.json").unlink(missing_ok=True)
    for file in out.glob("*.safetensors"):
        file.chmod(0o644)  # written for its owner only; this file is to be shared
    np.savez_compressed(out / ARRAYS, **arrays)
    versions = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    meta = {"seed": attempt, **facts, "versions": versions, "class": type(model).__name__}
    meta["defaults"] = _defaults(config)
    (out / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
    count = sum(parameter.numel() for parameter in model.parameters())
    made = f"{type(model).__name__}, {count:,} parameters, seed {attempt}"
    notes = [f"{out}: {made}, transformers {versions['transformers']}"]
    if attempt != seed:
        notes.append(f"seed {seed} → {attempt}: with the others, best tokens nearly tie or float32 is too coarse")
    return notes


def _defaults(config: Any) -> dict[str, Any]:
    """The value that transformers uses for each key of this config when a file lacks it; without nested configs."""
    stated, found = config.to_dict(), {}
    for key in stated:
        rest = {name: value for name, value in stated.items() if name not in (key, "model_type")}
        try:
            value = type(config)(**rest).to_dict()[key]
        except Exception:  # a config class may raise anything for an absent key; then it has no default
            continue
        if not key.endswith("_config") and _is_json(value):
            found[key] = value
    return found


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _kind_of(raw: Mapping[str, Any], where: str) -> tuple[Any, Any]:
    """The automatic class that makes a model of a config, and the config as transformers reads it.

    Raises:
        ConfigError: transformers refuses it, or has no language model of that type.
        UsageError: the model is too large.
    """
    settings = {key: value for key, value in raw.items() if key not in ("model_type", "quantization_config")}
    try:
        config = transformers.AutoConfig.for_model(raw["model_type"], **settings)
    except Exception as error:  # a config class of transformers may raise anything for a wrong value
        raise ConfigError("transformers refuses the config", where=where, found=_brief(error)) from error
    problems = []
    for kind in (transformers.AutoModelForCausalLM, transformers.AutoModelForImageTextToText):
        try:
            with torch.device("meta"):
                count = sum(parameter.numel() for parameter in kind.from_config(config).parameters())
        except Exception as error:  # as above
            problems.append(_brief(error))
            continue
        if count > _LARGEST:
            raise UsageError(
                f"the config makes a model of {count:,} parameters",
                where=where,
                expected=f"at most {_LARGEST:,}",
                hint="--tiny shrinks the sizes, and says which.",
            )
        return kind, config
    raise ConfigError("transformers cannot make a language model of the config", where=where, found=problems[0])


def _random_model(kind: Any, config: Any, seed: int) -> Any:
    """A float32 model whose norms are not ones and whose biases are not zeros, so that leaving one out has an
    effect."""
    torch.manual_seed(seed)
    if hasattr(transformers.PreTrainedModel, "_can_set_experts_implementation"):
        config._experts_implementation = "eager"  # the fused one does not support float64
    model = kind.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape)
            if name.endswith("bias"):
                parameter.copy_(0.3 * noise)
            elif parameter.ndim < 2:
                parameter.copy_(1 + 0.25 * noise)
            else:
                scale = 0.1 if id(parameter) in embeddings else 1.4 * parameter.shape[-1] ** -0.5
                parameter.copy_(scale * noise)
    return model


@torch.no_grad()  # type: ignore[untyped-decorator, unused-ignore]
def _compute(model: Any, config: Any, seed: int, length: int) -> tuple[dict[str, Any], dict[str, Any]]:
    text = config.get_text_config()
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, text.vocab_size, (length,), generator=generator)
    arrays: dict[str, Any] = {}
    gaps = []
    for prefix, prompt in (("", ids), ("short_", ids[:_SHORT])):
        made = model.generate(
            prompt[None],
            attention_mask=torch.ones_like(prompt)[None],
            max_new_tokens=_STEPS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
        steps = torch.cat(made.logits).float()
        best = steps.topk(2).values
        gaps.append(float((best[:, 0] - best[:, 1]).min() / steps.abs().max()))
        arrays[f"{prefix}input_ids"] = prompt.to(torch.int32).numpy()
        arrays[f"{prefix}continuation"] = made.sequences[0, len(prompt) :].to(torch.int32).numpy()
        arrays[f"{prefix}continuation_logits"] = steps.numpy()
        arrays[f"{prefix}logits"] = model(input_ids=prompt[None], use_cache=False).logits[0].numpy()
    arrays["hidden_states"] = _hidden_states(model, ids, text.num_hidden_layers)
    return arrays, {"rounding": _rounding(model, ids, arrays["logits"]), "smallest_gap": min(gaps)}


def _rounding(model: Any, ids: Any, logits: Any) -> float | None:
    """The largest difference between float32 and float64 logits, relative to the largest logit; None if unknown."""
    try:
        exact = model.double()(input_ids=ids[None], use_cache=False).logits[0].numpy()
    except RuntimeError:  # an operation that transformers has in float32 only
        return None
    finally:
        model.float()
    return float(np.abs(exact - logits).max() / np.abs(exact).max())


def _hidden_states(model: Any, ids: Any, count: int) -> Any:
    """The input of the first block and the output of each, ``[blocks + 1, 1, seq, hidden]``.

    They are recorded at the blocks, because transformers' own last hidden state comes after the final norm.
    """
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList) and len(module) == count]
    if not lists:
        raise ConfigError(f"{type(model).__name__} has no list of {count} blocks")
    caught: list[Any] = []

    def enters(_block: Any, inputs: Any, named: Any) -> None:
        caught.append(inputs[0] if inputs else named["hidden_states"])

    def leaves(_block: Any, _inputs: Any, output: Any) -> None:
        caught.append(output[0] if isinstance(output, tuple) else output)

    hooks = [lists[0][0].register_forward_pre_hook(enters, with_kwargs=True)]
    hooks += [block.register_forward_hook(leaves) for block in lists[0]]
    model(input_ids=ids[None], use_cache=False)
    for hook in hooks:
        hook.remove()
    return torch.stack(caught).numpy()


def _brief(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
