"""Batched generation: requests join and leave a running model at any step."""

from core.batching.engine import Batch
from core.batching.request import BatchEvent, BatchRequest

__all__ = ["Batch", "BatchEvent", "BatchRequest"]
