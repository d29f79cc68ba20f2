"""Decode speed at any context, without a prompt: a cache filled with random keys and values, then greedy decoding.

    python benchmarks/step.py --config …/config.json --bits 4 [--contexts 32 2048 16384] [--tokens 96] [--ordinary]

Random weights of the config's shape, batch 1, the device one step ahead of the host as in ``core.generate_tokens``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

import core
from core.fast import fast_step, reason
from core.kernels import reference_only
from core.nn.step import StepPlan


def filled_cache(model: Any, tokens: int) -> core.Cache:
    cache = model.make_cache()
    for block, step in zip(cache.blocks, StepPlan(1, tokens, len(cache.blocks), cache).steps(), strict=True):
        shape = (1, block.spec.heads, tokens, block.spec.head_dim)
        queries, keys, values = (mx.random.normal(shape).astype(mx.bfloat16) for _ in range(3))
        step.attend(queries, keys, values, scale=1, window=block.spec.window)  # what it gives is never computed
        mx.eval(block.arrays())
    cache.commit()
    return cache


def milliseconds(model: Any, context: int, tokens: int, repeats: int) -> list[float]:
    cache = filled_cache(model, context)
    step = fast_step(model, cache)
    token = mx.array([5], dtype=mx.uint32)
    times = []
    for _ in range(repeats + 1):
        mx.synchronize()
        started = time.perf_counter()
        for _ in range(tokens):
            logits = model(token[:, None], cache)[:, -1] if step is None else step(token)
            following = mx.argmax(logits, axis=-1)
            mx.async_eval(following)
            token.item()
            token = following
        mx.eval(token)
        times.append((time.perf_counter() - started) / tokens * 1e3)
    if step is not None:
        step.close()
    return times[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="a config.json")
    parser.add_argument("--bits", type=int, default=4, choices=[4, 8, 16])
    parser.add_argument("--contexts", type=int, nargs="+", default=[32, 2048])
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ordinary", action="store_true", help="without the fast step")
    arguments = parser.parse_args()
    mx.random.seed(0)
    built = core.build(json.loads(arguments.config.read_text()))
    model = built.model
    model.set_dtype(mx.bfloat16)
    if arguments.bits < 16:
        nn.quantize(
            model,
            group_size=64,
            bits=arguments.bits,
            class_predicate=lambda path, module: built.plugin.quantize_module(built.config, path, module),
        )
    for layer in model.layers:
        mx.eval(layer.parameters())
    mx.eval(model.parameters())
    why = reason(model, filled_cache(model, 1))
    print("fast step" if why is None else f"no fast step because of {why}")
    for context in arguments.contexts:
        if arguments.ordinary:
            with reference_only():
                times = milliseconds(model, context, arguments.tokens, arguments.repeats)
        else:
            times = milliseconds(model, context, arguments.tokens, arguments.repeats)
        print(f"context {context}: {1e3 / statistics.median(times):.1f} tok/s ({min(times):.3f}–{max(times):.3f} ms)")


if __name__ == "__main__":
    main()
