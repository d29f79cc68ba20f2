"""Source of a small but whole architecture plugin, as a third party would ship it.

One linear layer a block; the checkpoint's tensors are called as in ``checkpoints.third_party``.
"""

from __future__ import annotations

HEADER = """
import mlx.nn as nn
from core import CacheSpec, hookimpl
from core.config import ModelConfig
from core.weights import WeightMap


class Config(ModelConfig):
    rms_norm_eps: float = 1e-5


class Block(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.proj = nn.Linear(size, size, bias=False)

    def __call__(self, x, step):
        return x + self.proj(x)
"""

HOOKS = {
    "parse_config": """
@hookimpl
def parse_config(config):
    return Config.from_dict(config)
""",
    "weight_map": """
@hookimpl
def weight_map(config, layout):
    rules = {"embed_tokens": "embed", "layers.{layer}.proj": "blocks.{layer}", "norm": "norm", "lm_head": "head"}
    return WeightMap(rules, {"layer": range(config.num_hidden_layers)}) if layout == "hf" else None
""",
    "build_block": """
@hookimpl
def build_block(config):
    return Block(config.hidden_size)
""",
    "make_cache": """
@hookimpl
def make_cache():
    return CacheSpec.state({})
""",
}


def plugin_source(prelude: str = "", **changed: str) -> str:
    """A module's source.

    Args:
        prelude: comes first.
        changed: hook → its source instead of the usual one, ``""`` for none at all; other names are added.
    """
    return "\n".join([prelude, HEADER, *(HOOKS | changed).values()])
