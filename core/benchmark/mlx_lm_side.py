"""mlx-lm's side of a benchmark, in a process of its own.

``peer_program`` runs it. It imports nothing of core, so that the peer's process has no code of ours. It takes the same
times as ``core.benchmark.measure``.
"""

import contextlib
import importlib
import time
from typing import Any


class Side:
    """A loaded or random model in mlx-lm."""

    model: Any = None

    def hello(self, task: dict[str, Any]) -> dict[str, Any]:
        """Imports mlx-lm."""
        return {"version": importlib.import_module("mlx_lm").__version__}

    def load(self, task: dict[str, Any]) -> dict[str, Any]:
        """Loads a checkpoint from a directory, tokenizer included, and replaces the one before."""
        import mlx.core as mx

        mlx_lm = importlib.import_module("mlx_lm")
        self.model = None
        mx.clear_cache()
        mx.reset_peak_memory()
        started = time.perf_counter()
        self.model, _tokenizer, *_ = mlx_lm.load(task["path"])
        return {"seconds": time.perf_counter() - started, "peak_memory": mx.get_peak_memory()}

    def make(self, task: dict[str, Any]) -> dict[str, Any]:
        """Makes a model of random bfloat16 weights, quantized as mlx-lm's converter would."""
        import mlx.core as mx
        import mlx.nn as nn

        config, bits, group_size = task["config"], task["bits"], task["group_size"]
        kind = getattr(importlib.import_module("mlx_lm.utils"), "MODEL_REMAPPING", {}).get(
            config["model_type"], config["model_type"]
        )
        module = importlib.import_module(f"mlx_lm.models.{kind}")
        mx.random.seed(0)
        self.model = module.Model(module.ModelArgs.from_dict(config))
        self.model.set_dtype(mx.bfloat16)
        if bits is not None:

            def allowed(path: str, part: Any) -> Any:
                return hasattr(part, "to_quantized") and part.weight.shape[-1] % group_size == 0

            nn.quantize(self.model, group_size=group_size, bits=bits, class_predicate=allowed)
        for part in self.model.modules():
            mx.eval([value for value in part.values() if isinstance(value, mx.array)])
            mx.clear_cache()
        mx.eval(self.model)
        return {}

    def run(self, task: dict[str, Any]) -> dict[str, Any]:
        """One greedy generation of exactly ``generate`` tokens."""
        import mlx.core as mx

        module = importlib.import_module("mlx_lm.generate")  # the package has a function of this name
        prompt, count = mx.array(task["prompt"]), 0
        wired = getattr(module, "wired_limit", lambda *_: contextlib.nullcontext())
        mx.synchronize()
        mx.reset_peak_memory()
        started = time.perf_counter()
        first = last = started
        with wired(self.model, [module.generation_stream]):
            for count, _ in enumerate(module.generate_step(prompt, self.model, max_tokens=task["generate"]), 1):
                last = time.perf_counter()
                if count == 1:
                    first = last
        mx.synchronize()
        assert count == task["generate"]
        return {"first_token": first - started, "decode": last - first, "peak_memory": mx.get_peak_memory()}

    def batch(self, task: dict[str, Any]) -> dict[str, Any]:
        """Many greedy generations at once; with ``join``, one more prompt arrives while they run.

        Returns the times in seconds of each generation's tokens, and of the joining prompt's first one, since the first
        prompts (or the joining one) were submitted.
        """
        import mlx.core as mx

        module = importlib.import_module("mlx_lm.generate")
        prompts, join = task["prompts"], task.get("join")
        generator = module.BatchGenerator(
            self.model, completion_batch_size=len(prompts) + bool(join), **task.get("options", {})
        )
        mx.synchronize()
        mx.reset_peak_memory()
        started = time.perf_counter()
        running = generator.insert(prompts, max_tokens=[task["generate"]] * len(prompts))
        times: dict[int, list[float]] = {number: [] for number in running}
        late, joined, first = None, None, None
        while True:
            responses = generator.next_generated() if late is None else generator.next()[1]
            now = time.perf_counter() - started
            for response in responses:
                if response.uid == late:
                    first = now if first is None else first
                else:
                    times[response.uid].append(now)
            if join is None:
                if all(len(each) == task["generate"] for each in times.values()):
                    break
            elif late is None:
                if min(map(len, times.values())) >= task["before"]:
                    joined = now
                    (late,) = generator.insert([join], max_tokens=[2])
            elif first is not None or min(map(len, times.values())) >= task["generate"]:
                break
        generator.close()
        mx.synchronize()
        peak = mx.get_peak_memory()
        mx.clear_cache()  # frees memory for the other side's turn
        return {"times": list(times.values()), "joined": joined, "first": first, "peak_memory": peak}
