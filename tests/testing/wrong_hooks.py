"""Mistakes outside of blocks: configs, weight maps, models, caches, hooks, kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from pydantic import ConfigDict, Field

import plugins.mistral
from core import CacheSpec
from core.kernels.device import use_device
from core.nn import Decoder
from core.weights import Concat, Permute, Source, Stack, WeightMap
from plugins.mistral.config import MistralConfig
from tests.kernels.conftest import FakeGPU
from tests.testing.mutant import BASES

Rules = dict[str, Source]
OURS, THEIRS = "layers.{layer}", "model.layers.{layer}"


class Coerces(MistralConfig):
    model_config = ConfigDict(frozen=True, strict=False, extra="ignore")


class ReadsAnotherName(MistralConfig):
    @classmethod
    def read_keys(cls) -> frozenset[str]:
        return super().read_keys() - {"sliding_window"}


class HasAnotherDefault(MistralConfig):
    tie_word_embeddings: bool = True


class HoldsAFunction(MistralConfig):
    act: Any = Field(default_factory=lambda: lambda x: x)


def parses(kind: type[MistralConfig]) -> Callable[..., MistralConfig]:
    """A hook ``parse_config`` with another class."""
    return lambda config: kind.from_dict(config)


def maps(base: str, change: Callable[[Rules, Any], None], only: str = "hf") -> Callable[..., WeightMap | None]:
    """A hook ``weight_map`` that changes the rules of one layout."""

    def weight_map(config: Any, layout: str) -> WeightMap | None:
        found = BASES[base].weight_map(config, layout)
        if found is None or layout != only:
            return found
        rules = dict(found.rules)
        change(rules, config)
        return replace(found, rules=rules)

    return weight_map


def without_norm(rules: Rules, _config: Any) -> None:
    del rules["norm"]


def misspelt(rules: Rules, _config: Any) -> None:
    rules[f"{OURS}.self_attn.o_proj"] = f"{THEIRS}.self_attn.out_proj"


def up_before_gate(rules: Rules, _config: Any) -> None:
    rules[f"{OURS}.mlp.gate_up_proj"] = Concat(f"{THEIRS}.mlp.up_proj", f"{THEIRS}.mlp.gate_proj")


def values_before_keys(rules: Rules, _config: Any) -> None:
    names = (f"{THEIRS}.self_attn.{part}_proj" for part in "qvk")
    rules[f"{OURS}.self_attn.qkv_proj"] = Concat(*names)


def native_up_before_gate(rules: Rules, _config: Any) -> None:
    rules[f"{OURS}.mlp.gate_up_proj"] = Concat("layers.{layer}.feed_forward.w3", "layers.{layer}.feed_forward.w1")


def not_permuted(rules: Rules, _config: Any) -> None:
    names = (f"layers.{{layer}}.attention.w{part}" for part in "qkv")
    rules[f"{OURS}.self_attn.qkv_proj"] = Concat(*names)


def permuted_by_other_heads(rules: Rules, config: Any) -> None:
    query, key, value = (f"layers.{{layer}}.attention.w{part}" for part in "qkv")
    heads = config.num_key_value_heads
    rules[f"{OURS}.self_attn.qkv_proj"] = Concat(Permute(query, heads), Permute(key, heads), value)


def norms_exchanged(rules: Rules, _config: Any) -> None:
    one, other = "input_layernorm", "post_attention_layernorm"
    rules[f"{OURS}.{one}"], rules[f"{OURS}.{other}"] = f"{THEIRS}.{other}", f"{THEIRS}.{one}"


def layers_upside_down(rules: Rules, config: Any) -> None:
    count = config.num_hidden_layers
    for target in ("self_attn.o_proj", "mlp.down_proj"):
        del rules[f"{OURS}.{target}"]
        rules.update({f"layers.{i}.{target}": f"model.layers.{count - 1 - i}.{target}" for i in range(count)})


def experts_swap_gate_and_up(rules: Rules, _config: Any) -> None:
    expert = f"{THEIRS}.block_sparse_moe.experts.{{expert}}"
    rules[f"{OURS}.block_sparse_moe.experts.gate_up_proj"] = Stack(Concat(f"{expert}.w3", f"{expert}.w1"), "expert")


def experts_upside_down(base_map: Callable[..., WeightMap | None]) -> Callable[..., WeightMap | None]:
    """A hook ``weight_map`` that stacks the last expert first."""

    def weight_map(config: Any, layout: str) -> WeightMap | None:
        found = base_map(config, layout)
        if found is None or layout != "hf":
            return found
        return replace(found, ranges={**found.ranges, "expert": range(config.num_local_experts - 1, -1, -1)})

    return weight_map


def tied(config: Any, blocks: Any) -> Decoder:
    norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
    return Decoder(config.vocab_size, config.hidden_size, blocks, norm, tie_word_embeddings=True)


def tied_map(config: Any, layout: str) -> WeightMap | None:
    found = plugins.mistral.weight_map(config, layout)
    if found is None:
        return None
    rules = {target: source for target, source in found.rules.items() if target != "lm_head"}
    return replace(found, rules=rules, ignored={**found.ignored, "lm_head.weight": "?", "output.weight": "?"})


class UsesTheEmbedding(Decoder):
    """Has a head, and multiplies by the embedding all the same."""

    def head(self, x: mx.array) -> mx.array:
        y: mx.array = self.embed_tokens.as_linear(self.norm(x))
        return y


class NoFinalNorm(Decoder):
    def head(self, x: mx.array) -> mx.array:
        y: mx.array = self.lm_head(x) if "lm_head" in self else self.embed_tokens.as_linear(x)
        return y


def decoder(kind: type[Decoder]) -> Callable[..., Decoder]:
    """A hook ``build_model`` with another decoder."""

    def build_model(config: Any, blocks: Any) -> Decoder:
        norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        return kind(config.vocab_size, config.hidden_size, blocks, norm, tie_word_embeddings=config.tie_word_embeddings)

    return build_model


def constant_norms(config: Any, blocks: Any) -> Decoder:
    """All epsilons are 1e-6, whatever the config says."""
    for block in blocks:
        block.input_layernorm.eps = block.post_attention_layernorm.eps = 1e-6
    norm = nn.RMSNorm(config.hidden_size, eps=1e-6)
    return Decoder(config.vocab_size, config.hidden_size, blocks, norm, tie_word_embeddings=config.tie_word_embeddings)


def full_cache(config: Any) -> CacheSpec:
    return CacheSpec.full(config.num_key_value_heads, config.head_dim)


def wider_cache(config: Any) -> CacheSpec:
    return CacheSpec.sliding(config.sliding_window + 1, config.num_key_value_heads, config.head_dim)


def cache_of_query_heads(config: Any) -> CacheSpec:
    return CacheSpec.sliding(config.sliding_window, config.num_attention_heads, config.head_dim)


def everything_is_quantized(module: nn.Module) -> bool:
    return hasattr(module, "to_quantized")


def asks_a_hook(block: nn.Module, config: Any) -> None:
    """The block asks for its cache's description while it computes."""
    inner = type(block)

    class Asking(inner):  # type: ignore[misc, valid-type]
        def __call__(self, x: mx.array, step: Any) -> mx.array:
            plugins.mistral.parse_config(RAW)
            y: mx.array = super().__call__(x, step)
            return y

    block.__class__ = Asking


RAW: Mapping[str, Any] = {
    "model_type": "mistral",
    "vocab_size": 8,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
}


def computes_early(block: nn.Module, _config: Any) -> None:
    mx.eval(mx.zeros((64, 1024, 1024), dtype=mx.uint8))


def head_dim_of_its_own(config: Any) -> nn.Module:
    """Heads of hidden_size / heads, whatever the config says."""
    derived = config.model_copy(update={"head_dim": config.hidden_size // config.num_attention_heads})
    return plugins.mistral.build_block(derived)


@contextmanager
def wrong_swiglu() -> Iterator[None]:
    """A device whose SwiGLU forgets the gate's sigmoid; other kernels have no source that it could run."""

    def compute(gate_up: mx.array, *_others: mx.array) -> mx.array:
        gate, up = mx.split(gate_up, 2, axis=-1) if not _others else (gate_up, _others[0])
        return gate * up

    with use_device(FakeGPU(compute)):
        yield
