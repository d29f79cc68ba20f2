"""Generation: token ids in, token ids out. Knows no text and no files."""

from core.generation.chooser import Choice, Chooser
from core.generation.loop import Token, generate_tokens, stream_tokens
from core.generation.processors import Processor, ProcessorContext
from core.generation.result import FinishReason, GenerationChunk, GenerationResult, GenerationStats
from core.generation.sampling import DEFAULT_ORDER, Sampling, SamplingOptions, sampling_from, spelled_out

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
    "generate_tokens",
    "sampling_from",
    "spelled_out",
    "stream_tokens",
]
