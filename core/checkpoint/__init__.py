"""Opens a checkpoint from a path or hub id: its files, its layout and its safetensors headers.

No tensor data is read, and no code of a checkpoint is executed.
"""

from __future__ import annotations

from core.checkpoint.bounded_json import decode, parse_object
from core.checkpoint.checkpoint import Checkpoint
from core.checkpoint.header import DTYPES, TensorInfo
from core.checkpoint.local_file import read_local
from core.checkpoint.opening import open_checkpoint

__all__ = ["DTYPES", "Checkpoint", "TensorInfo", "decode", "open_checkpoint", "parse_object", "read_local"]
