"""Many requests at once: output tokens a second beside mlx-lm's batch generator, and what a long prompt does to others.

    python benchmarks/batch.py --config mistral-7b --bits 4 --against mlx-lm
    python benchmarks/batch.py --config mistral-7b --bits 4 --join 32768 [--against mlx-lm]
    python benchmarks/batch.py --model demo:mistral --requests 8 --prompt 32 --generate 32 --solo

Greedy, the same ids on both sides, each side in a process of its own and in turns. Random weights of the shape,
or a checkpoint. Both measure from the first request's submission to the last token, prompts included.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import statistics
import time
from collections.abc import Sequence
from typing import Any

import mlx.core as mx

import core
from core.batching import Batch
from core.benchmark.peer import PeerProcess
from core.benchmark.peer_kinds import check_peer
from core.benchmark.random_model import random_model
from core.benchmark.settings import prompt
from core.benchmark.shapes import read_shape

_LATE = 2  # new tokens of the prompt that joins


def ours(model: Any, prompts: Sequence[list[int]], generate: int, options: Any, **more: Any) -> dict[str, Any]:
    """Our side of what ``mlx_lm_side`` calls ``batch``."""
    join, before = more.get("join"), more.get("before", 0)
    batch = Batch(model, max_rows=len(prompts) + bool(join), **options)
    mx.synchronize()
    mx.reset_peak_memory()
    started = time.perf_counter()
    times = {batch.submit(ids, max_tokens=generate): [] for ids in prompts}
    late, joined, first = None, None, None
    while True:
        events = batch.step()
        now = time.perf_counter() - started
        for event in events:
            if event.error is not None:
                raise event.error
            if event.chunk.token_id is None:
                continue
            if event.request is late:
                first = now if first is None else first
            else:
                times[event.request].append(now)
        if join is None:
            if all(request.done for request in times):
                break
        elif late is None:
            if min(map(len, times.values())) >= before:
                joined = now
                late = batch.submit(join, max_tokens=_LATE)
        elif first is not None or all(request.done for request in times):
            break
    mx.synchronize()
    peak = mx.get_peak_memory()
    for request in times:
        request.cancel()
    for _ in batch:
        pass
    ids = [request.result.token_ids for request in times if request.result is not None]
    return {"times": list(times.values()), "joined": joined, "first": first, "peak_memory": peak, "ids": ids}


def one_by_one(model: Any, prompts: Sequence[list[int]], generate: int) -> tuple[float, list[list[int]]]:
    """Tokens a second of the same requests, one after another, and their ids."""
    started = time.perf_counter()
    ids = [list(core.generate_tokens(model, each, max_tokens=generate)) for each in prompts]
    return len(prompts) * generate / (time.perf_counter() - started), ids


def divergence(together: Sequence[list[int]], alone: Sequence[list[int]]) -> str:
    """How many requests give other ids in a batch than alone, and after how many tokens."""
    firsts = []
    for one, other in zip(together, alone, strict=True):
        place = next((place for place, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1]), None)
        if place is not None:
            firsts.append(place)
    tokens = sum(map(len, alone)) - sum(len(alone[0]) - place - 1 for place in firsts)
    after = f", after {statistics.median(firsts):.0f} tokens (median)" if firsts else ""
    return (
        f"{len(firsts)} of {len(alone)} requests give other ids than alone{after}; {len(firsts)} in {tokens:,} tokens"
    )


def figures(run: dict[str, Any]) -> dict[str, float]:
    """Rates of a run without a joining prompt."""
    times = run["times"]
    tokens = sum(map(len, times))
    total = max(each[-1] for each in times)
    all_running = max(each[0] for each in times)
    decoded = sum(moment > all_running for each in times for moment in each)
    return {
        "output tok/s": tokens / total,
        "decode tok/s, all running": decoded / (total - all_running) if total > all_running else float("nan"),
        "first token, median s": statistics.median(each[0] for each in times),
        "first token, last s": all_running,
        "peak GiB": run["peak_memory"] / 2**30,
    }


def gaps(run: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Seconds between tokens of the requests that run: undisturbed, and while the prompt joins."""
    before: list[float] = []
    during: list[float] = []
    begin = max(each[0] for each in run["times"])
    end = run["first"] if run["first"] is not None else float("inf")
    for each in run["times"]:
        for one, two in itertools.pairwise(each):
            if begin <= one and two <= run["joined"]:
                before.append(two - one)
            elif run["joined"] <= one and two <= end:
                during.append(two - one)
    return before, during


def show_join(name: str, run: dict[str, Any]) -> None:
    before, during = gaps(run)
    if run["first"] is None or not before or not during:
        print(f"{name}: the long prompt did not finish before the others; give them more --generate")
        return
    usual = statistics.median(before)
    print(
        f"{name}: time between tokens undisturbed {usual * 1e3:.2f} ms (largest {max(before) * 1e3:.2f}), "
        f"while joining median {statistics.median(during) * 1e3:.2f} ms ({statistics.median(during) / usual:.2f}x), "
        f"largest {max(during) * 1e3:.2f} ms ({max(during) / usual:.2f}x); "
        f"the long prompt's first token after {run['first'] - run['joined']:.2f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", help="mistral-7b, mixtral-8x7b, …, or a config.json: random weights")
    source.add_argument("--model", help="a checkpoint, as for core.load")
    parser.add_argument("--bits", type=int, default=4, help="of random weights; 16: bfloat16")
    parser.add_argument("--layers", type=int, help="blocks of random weights, instead of the config's")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=None, help="new tokens of each (128; 4,000 with --join)")
    parser.add_argument("--ragged", action="store_true", help="prompts of half to one and a half times --prompt")
    parser.add_argument("--join", type=int, metavar="TOKENS", help="a prompt of so many tokens joins while they run")
    parser.add_argument("--before", type=int, default=64, help="undisturbed tokens before it joins")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--against", choices=["mlx-lm"])
    parser.add_argument(
        "--solo", action="store_true", help="our requests also one after another, and whether the ids differ"
    )
    parser.add_argument("--prefill-chunk", type=int)
    parser.add_argument("--prefill-burst", type=int)
    arguments = parser.parse_args()
    options = {
        name: value
        for name, value in (("prefill_chunk", arguments.prefill_chunk), ("prefill_burst", arguments.prefill_burst))
        if value is not None
    }
    generate = arguments.generate or (128 if arguments.join is None else 4000)
    with contextlib.ExitStack() as stack:
        peer = None
        if arguments.against is not None:
            check_peer(arguments.against)
            peer = stack.enter_context(PeerProcess(arguments.against))
        if arguments.config is not None:
            shape = read_shape(arguments.config, bits=arguments.bits, layers=arguments.layers)
            model = random_model(shape)[0].model
            if peer is not None:
                peer.make(shape)
        else:
            lm = core.load(arguments.model)
            model = lm.model
            if peer is not None:
                assert lm.origin is not None
                peer.load(lm.origin.checkpoint.path)
        measure(model, peer, generate, options, arguments)


def measure(model: Any, peer: PeerProcess | None, generate: int, options: dict[str, Any], arguments: Any) -> None:
    lengths = [arguments.prompt] * arguments.requests
    if arguments.ragged:
        half = arguments.prompt // 2
        lengths = [half + (37 * i * arguments.prompt // 64) % (2 * half + 1) for i in range(arguments.requests)]
    vocabulary = model.vocab_size
    prompts = [[(i * 101 + token) % vocabulary for token in prompt(n, vocabulary)] for i, n in enumerate(lengths)]
    more: dict[str, Any] = {}
    if arguments.join is not None:
        more = {"join": prompt(arguments.join, vocabulary), "before": arguments.before}
    print(f"{len(prompts)} requests, {sum(lengths):,} prompt tokens, {generate} new ones each", flush=True)
    # The first round compiles, on both sides, and is not counted; so it runs to the end, through all numbers of rows.
    mine: list[dict[str, Any]] = []
    theirs: list[dict[str, Any]] = []
    for number in range(arguments.repeats + 1):
        mine.append(ours(model, prompts, generate, options, **more))
        gc.collect()
        mx.clear_cache()
        if peer is not None:
            theirs.append(peer.batch(prompts, generate, **more))
        if number and more:
            show_join("core", mine[-1])
            if theirs:
                show_join("mlx-lm", theirs[-1])
        elif number:
            for name, runs in (("core", mine), ("mlx-lm", theirs)):
                if runs:
                    shown = ", ".join(f"{key} {value:,.2f}" for key, value in figures(runs[-1]).items())
                    print(f"{name}: {shown}", flush=True)
    if theirs and not more:
        ratios = [
            figures(one)["output tok/s"] / figures(two)["output tok/s"]
            for one, two in zip(mine[1:], theirs[1:], strict=True)
        ]
        print(f"ratio of output tok/s: median {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    if arguments.solo:
        alone, ids = one_by_one(model, prompts, generate)
        together = statistics.median(figures(run)["output tok/s"] for run in mine[1:])
        print(f"one after another: {alone:,.2f} tok/s; together {together / alone:.2f} times that")
        print(divergence(mine[-1]["ids"], ids))


if __name__ == "__main__":
    main()
