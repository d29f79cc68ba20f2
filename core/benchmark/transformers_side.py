"""transformers' side of a benchmark, on PyTorch, in a process of its own.

``peer_program`` runs it. On a GPU, it generates with a static cache, for which transformers compiles the decode step.
On a CPU, it calls the model itself, step by step, with a growing cache and without compilation. It imports nothing of
core.
"""

import time
from collections.abc import Callable
from typing import Any

_ROUND = 1024  # a static cache of another size is compiled again


class Side:
    """A loaded or random model in transformers."""

    model: Any = None

    def hello(self, task: dict[str, Any]) -> dict[str, Any]:
        """Imports both packages; sets the number of threads."""
        import torch
        import transformers

        torch.set_num_threads(task["threads"])
        return {"version": f"{transformers.__version__} (torch {torch.__version__})"}

    def load(self, task: dict[str, Any]) -> dict[str, Any]:
        """Loads a checkpoint from a directory, and replaces the one before."""
        import torch
        from transformers import AutoModelForCausalLM

        self.model = None
        started = time.perf_counter()
        dtype = getattr(torch, task["format"])
        model: Any = AutoModelForCausalLM.from_pretrained(task["path"], dtype=dtype)
        self.model = model.to(_device()).eval()
        _synchronize()
        return {"seconds": time.perf_counter() - started, **_peak()}

    def make(self, task: dict[str, Any]) -> dict[str, Any]:
        """Makes a model of random weights."""
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        torch.manual_seed(0)
        config = AutoConfig.for_model(**task["config"])
        with torch.device(_device()):
            self.model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, task["format"])).eval()
        return {}

    def run(self, task: dict[str, Any]) -> dict[str, Any]:
        """One greedy generation of exactly ``generate`` tokens; a token counts as generated when its id is on the
        host."""
        import torch

        ids, count = torch.tensor([task["prompt"]], device=_device()), task["generate"]
        with torch.inference_mode():
            return self._on_gpu(ids, count) if torch.cuda.is_available() else self._on_cpu(ids, count)

    def logits(self, task: dict[str, Any]) -> dict[str, Any]:
        """Logits after each of ``parts``, lists of token ids that are read one list after the other."""
        import torch

        steps = self._steps()
        with torch.inference_mode():
            found = [steps(torch.tensor([part], device=_device())) for part in task["parts"]]
        return {"logits": [logits.float().tolist() for logits in found]}

    def _steps(self) -> Callable[[Any], Any]:
        """A function from the next tokens to the logits after the last of them, with a cache of its own."""
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config)

        def step(ids: Any) -> Any:
            return self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1]

        return step

    def _on_cpu(self, ids: Any, count: int) -> dict[str, Any]:
        step = self._steps()
        started = time.perf_counter()
        token = step(ids).argmax().reshape(1, 1)
        token.item()
        first = time.perf_counter()
        for _ in range(count - 1):
            token = step(token).argmax().reshape(1, 1)
            token.item()
        return {"first_token": first - started, "decode": time.perf_counter() - first}

    def _on_gpu(self, ids: Any, count: int) -> dict[str, Any]:
        import torch
        from transformers import StaticCache

        size = -(-(ids.shape[1] + count) // _ROUND) * _ROUND
        cache = StaticCache(config=self.model.config, max_cache_len=size)
        clock = _Clock()
        _synchronize()
        torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
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
        return {"first_token": first - started, "decode": last - first, **_peak()}


class _Clock:
    """A streamer that records when each token arrived."""

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


def _peak() -> dict[str, int]:
    """On a GPU, the peak memory; on a CPU, nothing: ``peer_program`` adds the process's."""
    import torch

    return {"peak_memory": torch.cuda.max_memory_allocated()} if torch.cuda.is_available() else {}
