"""A path or hub id → files, layout and safetensors headers.

No weight byte is read, and nothing of a checkpoint is executed. Knows no models, no plugins and no
arrays; of `core` it uses only the errors.
"""

from __future__ import annotations

from core.checkpoint.bounded_json import decode, parse_object
from core.checkpoint.checkpoint import Checkpoint
from core.checkpoint.header import DTYPES, TensorInfo
from core.checkpoint.local_file import read_local
from core.checkpoint.opening import open_checkpoint

__all__ = ["DTYPES", "Checkpoint", "TensorInfo", "decode", "open_checkpoint", "parse_object", "read_local"]
