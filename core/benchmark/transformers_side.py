"""transformers' side of a benchmark, on PyTorch: in a process of its own, which core starts and never imports.

Run by ``peer_program``. Generates with a static cache, for which transformers compiles the decode step; bfloat16 only.
Imports nothing of core.
"""

import time
from typing import Any

_ROUND = 1024  # a static cache of another size is compiled anew


class Side:
    """A loaded or random model of transformers'."""

    model: Any = None

    def hello(self, task: dict[str, Any]) -> dict[str, Any]:
        """Imports both packages."""
        import torch
        import transformers

        return {"version": f"{transformers.__version__} (torch {torch.__version__})"}

    def load(self, task: dict[str, Any]) -> dict[str, Any]:
        """Loads a checkpoint from a directory, in place of the one before."""
        import torch
        from transformers import AutoModelForCausalLM

        self.model = None
        started = time.perf_counter()
        self.model = AutoModelForCausalLM.from_pretrained(task["path"], dtype=torch.bfloat16).to(_device()).eval()
        _synchronize()
        return {"seconds": time.perf_counter() - started, "peak_memory": _peak()}

    def make(self, task: dict[str, Any]) -> dict[str, Any]:
        """Makes a model of random bfloat16 weights."""
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        if task["bits"] is not None:
            raise ValueError("this side has bfloat16 weights only")
        torch.manual_seed(0)
        config = AutoConfig.for_model(**task["config"])
        with torch.device(_device()):
            self.model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
        return {}

    def run(self, task: dict[str, Any]) -> dict[str, Any]:
        """One greedy generation of exactly ``generate`` tokens; a token has come when its id is on the host."""
        import torch
        from transformers import StaticCache

        ids, count = torch.tensor([task["prompt"]], device=_device()), task["generate"]
        size = -(-(ids.shape[1] + count) // _ROUND) * _ROUND
        cache = StaticCache(config=self.model.config, max_cache_len=size)
        clock = _Clock()
        _synchronize()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        with torch.inference_mode():
            self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                past_key_values=cache,
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
                pad_token_id=0,
                streamer=clock,
            )
        assert len(clock.times) == count
        first, last = clock.times[0], clock.times[-1]
        return {"first_token": first - started, "decode": last - first, "peak_memory": _peak()}


class _Clock:
    """A streamer that notes when each token came."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._prompt = True

    def put(self, value: Any) -> None:
        value.tolist()
        if not self._prompt:
            self.times.append(time.perf_counter())
        self._prompt = False

    def end(self) -> None:
        pass


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _peak() -> int:
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
