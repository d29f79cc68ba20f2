"""Generation: token ids in, token ids out."""

from core.generation.checkpoint import (
    checkpoint_number,
    checkpoint_settings,
    checkpoint_stops,
    unread_generation_keys,
)
from core.generation.chooser import Choice, Chooser
from core.generation.entry import generate_tokens, stream_tokens
from core.generation.options import SamplingOptions, sampling_from, spelled_out
from core.generation.processors import Processor, ProcessorContext
from core.generation.result import FinishReason, GenerationChunk, GenerationResult, GenerationStats, Token
from core.generation.sampling import Sampling
from core.sampling.settings import DEFAULT_ORDER

__all__ = [
    "Choice",
    "Chooser",
    "DEFAULT_ORDER",
    "FinishReason",
    "GenerationChunk",
    "GenerationResult",
    "GenerationStats",
    "Processor",
    "ProcessorContext",
    "Sampling",
    "SamplingOptions",
    "Token",
    "checkpoint_number",
    "checkpoint_settings",
    "checkpoint_stops",
    "generate_tokens",
    "sampling_from",
    "spelled_out",
    "stream_tokens",
    "unread_generation_keys",
]
