"""Batches: requests that join and leave a running model at any step. Knows ids, rows and memory; no architecture."""

from core.batching.engine import Batch
from core.batching.request import BatchEvent, BatchRequest

__all__ = ["Batch", "BatchEvent", "BatchRequest"]
