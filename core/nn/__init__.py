"""What plugins build blocks from: attention, rotary positions, feed-forward layers, experts, caches, the decoder."""

import core.needs_mlx  # noqa: F401
from core.nn.attention import Attention
from core.nn.cache import Cache
from core.nn.decoder import Decoder
from core.nn.experts import Experts
from core.nn.linear import ExpertLinear, FusedLinear, Linear
from core.nn.mlp import MLP
from core.nn.parts import PreNorm, SparseExperts
from core.nn.quantized import QuantizedExpertLinear, QuantizedLinear
from core.nn.rope import RoPE, depends_on_length, rotation_limit
from core.nn.settings import CacheSettings
from core.nn.spec import CacheSpec
from core.nn.state import State
from core.nn.step import Step

__all__ = [
    "MLP",
    "Attention",
    "Cache",
    "CacheSettings",
    "CacheSpec",
    "Decoder",
    "ExpertLinear",
    "Experts",
    "FusedLinear",
    "Linear",
    "PreNorm",
    "QuantizedExpertLinear",
    "QuantizedLinear",
    "RoPE",
    "SparseExperts",
    "State",
    "Step",
    "depends_on_length",
    "rotation_limit",
]
