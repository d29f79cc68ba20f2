"""Stub."""
from dataclasses import dataclass
import mlx.core as mx
@dataclass
class Choice:
    ids: mx.array
    logprobs: mx.array | None = None
    top_ids: mx.array | None = None
    top_logprobs: mx.array | None = None
class Chooser:
    def __init__(self, vocab_size): self.rows=[]
    def join(self, sampling, prompt_ids, logprobs=None): self.rows.append(sampling)
    def leave(self, row): del self.rows[row]
    def choose(self, logits, positions):
        return Choice(mx.concatenate([s.sampler()(logits[i:i+1], p) for i,(s,p) in enumerate(zip(self.rows, positions))]).astype(mx.uint32) if any(s.temperature for s in self.rows) else mx.argmax(logits,axis=-1))
