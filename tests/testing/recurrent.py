"""A plugin without attention, whose blocks keep a decaying sum: the kit asks nothing of attention's kind."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from pydantic import PositiveFloat

from core import CacheSpec, hookimpl
from core.config import ModelConfig
from core.nn import Step
from core.weights import WeightMap


class RecurrentConfig(ModelConfig):
    rms_norm_eps: PositiveFloat
    decay: PositiveFloat


class Block(nn.Module):
    """``x + out(h)`` with ``h = decay * h + inner(norm(x))``, token by token."""

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.inner = nn.Linear(config.hidden_size, config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.decay = config.decay

    def __call__(self, x: mx.array, step: Step) -> mx.array:
        state = step.state
        h = mx.zeros((x.shape[0], x.shape[2]), x.dtype) if state is None else state["sum"].astype(x.dtype)
        new, sums = self.inner(self.norm(x)), []
        for token in range(x.shape[1]):
            moved = self.decay * h + new[:, token]
            h = moved if step.lengths is None else mx.where((token < step.lengths)[:, None], moved, h)
            sums.append(h)
        if state is not None:
            state["sum"] = h.astype(mx.float32)
        return x + self.out(mx.tanh(mx.stack(sums, axis=1)))


class Recurrent:
    """The hooks."""

    @hookimpl
    def parse_config(self, config: dict[str, Any]) -> RecurrentConfig:
        return RecurrentConfig.from_dict(config)

    @hookimpl
    def build_block(self, config: RecurrentConfig) -> nn.Module:
        return Block(config)

    @hookimpl
    def make_cache(self, config: RecurrentConfig) -> CacheSpec:
        return CacheSpec.state({"sum": (config.hidden_size,)})

    @hookimpl
    def weight_map(self, config: RecurrentConfig, layout: str) -> WeightMap | None:
        names = {f"layers.{{layer}}.{part}": f"layers.{{layer}}.{part}" for part in ("norm", "inner", "out")}
        names |= {"embed_tokens": "embed", "norm": "norm"}
        names |= {} if config.tie_word_embeddings else {"lm_head": "head"}
        return WeightMap(names, {"layer": range(config.num_hidden_layers)}) if layout == "hf" else None


CONFIG = {
    "model_type": "recurrent",
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-5,
    "decay": 0.7,
}
