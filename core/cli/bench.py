"""``corelm bench``: how fast a model loads, reads prompts and generates here, and how a peer does beside it."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from core.cli.options import SOURCE_HELP, add_loading_options, loading_options, natural
from core.cli.terminal import clean, put, put_json, say, size, table
from core.errors import BenchmarkError, UsageError

if TYPE_CHECKING:
    from core.benchmark import Benchmark, Shape
    from core.benchmark.result import Loading, Peer, Speed, Spread

SUMMARY = "measure a model's speed here: load, first token, prefill, decode, memory"
_LABEL = 11


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("source", metavar="MODEL", nargs="?", help=SOURCE_HELP)
    parser.add_argument("--iterations", type=natural, default=10, metavar="N", help="counted runs of each length")
    parser.add_argument(
        "--prompt-tokens",
        type=lengths,
        metavar="N,N",
        help="lengths of prompts (default: 32,512,2048,8192, as far as the model was made for them)",
    )
    parser.add_argument("--generate", type=natural, default=128, metavar="N", help="new tokens of a run")
    parser.add_argument(
        "--against",
        metavar="PEER",
        action="append",
        help="measure mlx-lm, transformers or llama.cpp too, in turns, in a process of its own; a format of its "
        "weights may follow, as in transformers:float32 or llama.cpp:Q4_0; may be given more than once",
    )
    parser.add_argument("--chart", type=Path, metavar="FILE.svg", help="draw decode speed against context length")
    parser.add_argument("--json", action="store_true", help="one JSON object, as core/benchmark/result.py describes it")
    shape = parser.add_argument_group("a shape without weights")
    shape.add_argument(
        "--config", metavar="SHAPE", help="mistral-7b, mixtral-8x7b, mixtral-8x22b, or a config.json; with --random"
    )
    shape.add_argument("--random", action="store_true", help="fill the shape with random weights")
    shape.add_argument("--bits", type=natural, metavar="B", help="quantize them, in groups of 64 (default: bfloat16)")
    shape.add_argument("--layers", type=natural, metavar="N", help="with so many blocks instead of all")
    add_loading_options(parser)


def run(args: argparse.Namespace) -> int:
    """Measures, and returns the exit code."""
    _check(args)
    from core.benchmark import bench, decode_chart
    from core.benchmark.settings import Settings
    from core.cli.progress import benchmark_progress

    Settings.checked(args.prompt_tokens, args.generate, args.iterations)  # before anything is loaded
    options = loading_options(args)
    with benchmark_progress() as progress:
        found = bench(
            _shape(args) if args.source is None else args.source,
            prompt_tokens=args.prompt_tokens,
            generate=args.generate,
            iterations=args.iterations,
            against=args.against,
            progress=progress,
            **options,
        )
    if args.json:
        put_json(dataclasses.asdict(found))
    else:
        put(_report(found))
    if args.chart is not None:
        try:
            args.chart.write_text(decode_chart(found), encoding="utf-8")
        except OSError as error:
            raise BenchmarkError(f"the chart cannot be written: {error.strerror}", where=args.chart) from None
        say(f"chart: {clean(args.chart)}")
    return 0


def lengths(text: str) -> tuple[int, ...]:
    return tuple(natural(part) for part in text.split(","))


def _check(args: argparse.Namespace) -> None:
    """Refuses what makes no sense, whatever the model."""
    if (args.source is None) == (args.config is None):
        raise UsageError(
            "measure what? Give either a model or --config" if args.source is None else "a model and --config are two",
            hint=f"A model is {SOURCE_HELP}. A shape is --config mistral-7b --random --bits 4.",
        )
    if args.config is not None and not args.random:
        raise UsageError("--config has no weights", hint="--random fills the shape with random ones.")
    if args.source is not None:
        for name in ("random", "bits", "layers"):
            if getattr(args, name):
                raise UsageError(f"--{name} is for --config", hint="--quantize BITS quantizes a model as it is read.")
    else:
        for name in ("plugin", "revision", "format", "quantize", "dequantize", "approximate", "strict"):
            if getattr(args, name):
                raise UsageError(f"--{name} is for a model, and --config has no files")
    if args.chart is not None:
        if args.chart.suffix.lower() != ".svg":
            raise UsageError("a chart is an SVG", expected="a file that ends in .svg", found=args.chart)
        if not args.chart.absolute().parent.is_dir():
            raise UsageError("there is no such directory for the chart", where=args.chart.parent)


def _shape(args: argparse.Namespace) -> Shape:
    from core.benchmark import read_shape

    return read_shape(args.config, bits=args.bits, layers=args.layers)


def _report(found: Benchmark) -> list[str]:
    subject, machine = found.subject, found.machine
    weights = "random weights, " if subject.random else ""
    quantized = "not quantized" if subject.quantization == "none" else subject.quantization
    rates = machine.bandwidth
    facts = {
        "model": f"{subject.model_type}, {subject.layers} layers, {subject.parameters:,} parameters, "
        f"{weights}{quantized}, {size(subject.weight_bytes)}, computes in {subject.compute_dtype}",
        "device": machine.device,
        "versions": f"corelm {machine.core}, MLX {machine.mlx}, Python {machine.python}, {machine.system}",
        "bandwidth": f"{rates.median / 1e9:,.1f} GB/s ({rates.min / 1e9:,.1f}–{rates.max / 1e9:,.1f}), "
        f"{machine.bandwidth_how}",
    }
    if found.loading is not None:
        facts["load"] = _loading(found.loading)
    facts_of_peers = [fact for peer in found.peers for fact in _peer(peer)]
    runs = f"{found.iterations} of each length, {found.generate:,} new tokens; median (lowest–highest)"
    rows: list[tuple[str, ...]] = [("prompt", "", "first token", "prefill tok/s", "decode tok/s", "of limit", "memory")]
    for length in found.lengths:
        rows.append((f"{length.prompt_tokens:,}", "core", *_speed(length.speed, f"{length.fraction:.1%}")))
        for peer, speed, ratio in zip(found.peers, length.peers, length.ratios, strict=True):
            share = speed.decode.median / length.decode_limit
            rows.append(("", peer.name, *_speed(speed, f"{share:.1%}")))
            rows.append(("", "ratio", "", _ratio(ratio.prefill), _ratio(ratio.decode), "", ""))
    shown = [*facts.items(), *facts_of_peers, ("runs", runs)]
    lines = [clean(subject.name), *(f"  {label:{_LABEL}} {clean(text)}" for label, text in shown), ""]
    lines += [f"  {line}" for line in table(rows)]
    first = found.lengths[0]
    lines += [
        "",
        f"  of limit: decode speed if a step only read its bytes at that bandwidth; {size(first.step_bytes)} at "
        f"{first.context:,} tokens: {first.decode_limit:,.1f} tok/s",
    ]
    return lines + [f"  note: {clean(note)}" for note in found.notes]


def _peer(peer: Peer) -> list[tuple[str, str]]:
    weights = "" if peer.weights is None else f", {peer.weights} weights"
    name = peer.name.partition(":")[0]
    facts = [("peer", f"{name} {peer.version}{weights}, in turns, in a process of its own")]
    if peer.loading is not None and peer.load_ratio is not None:
        facts.append(("peer's load", f"{_loading(peer.loading)}; ours takes {_ratio(peer.load_ratio)}"))
    return facts


def _loading(loading: Loading) -> str:
    seconds = loading.seconds
    return (
        f"{seconds.median:.2f} s ({seconds.min:.2f}–{seconds.max:.2f}) of {len(seconds.values)}, "
        f"{size(loading.peak_memory)} at most"
    )


def _speed(speed: Speed, share: str) -> tuple[str, ...]:
    return (
        f"{speed.first_token.median:.3f} s",
        _spread(speed.prefill),
        _spread(speed.decode),
        share,
        size(speed.peak_memory),
    )


def _spread(spread: Spread) -> str:
    digits = 1 if spread.median < 1000 else 0
    low, middle, high = (f"{value:,.{digits}f}" for value in (spread.min, spread.median, spread.max))
    return f"{middle} ({low}–{high})"


def _ratio(spread: Spread) -> str:
    return f"{spread.median:.2f} × ({spread.min:.2f}–{spread.max:.2f})"
