"""Generation: token ids in, token ids out. Knows no text and no files."""

from core.generation.loop import generate_tokens
from core.generation.result import GenerationChunk, GenerationResult, GenerationStats
from core.generation.sampling import Sampling

__all__ = ["GenerationChunk", "GenerationResult", "GenerationStats", "Sampling", "generate_tokens"]
