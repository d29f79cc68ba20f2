"""Prepares the measured model, on our side and on the peers': loads a checkpoint, or fills a shape with random
weights."""

from __future__ import annotations

import contextlib
import gc
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx

from core.benchmark.peer import PeerProcess
from core.benchmark.random_model import random_model
from core.benchmark.result import Loading, Spread, Subject
from core.benchmark.shapes import Shape
from core.benchmark.traffic import parameter_count, step_cache_bytes, step_weight_bytes, weight_bytes
from core.loading import BuiltModel, load
from core.nn import Decoder
from core.saving.conversion import convert
from core.weights.dtypes import dtype_from, spelling
from core.weights.quantization import settings_of

_READING = ("plugin", "revision", "format", "strict")  # options of a load that choose what is read


@dataclass(frozen=True)
class Measured:
    """The model to measure, loaded in core and in each peer.

    Attributes:
        subject: its description for the report.
        limit: the model's context in tokens; None if unknown.
        loading: None for random weights.
        peer_loadings: of each peer; empty for random weights.
    """

    subject: Subject
    limit: int | None
    loading: Loading | None
    peer_loadings: tuple[Loading, ...]
    built: BuiltModel = field(repr=False)
    compute_dtype: mx.Dtype = field(repr=False)

    @property
    def model(self) -> Decoder:
        """Our side's model."""
        return self.built.model

    def step_bytes(self, context: int) -> int:
        """Bytes that a decode step of one sequence must read: weights, and a cache of ``context`` tokens."""
        config, plugin = self.built.config, self.built.plugin
        specs = [plugin.make_cache(config, index) for index in range(config.num_hidden_layers)]
        weights = step_weight_bytes(self.model, getattr(config, "num_experts_per_tok", None))
        return weights + step_cache_bytes(specs, context, self.compute_dtype)


def from_checkpoint(
    source: str | os.PathLike[str], peers: Sequence[PeerProcess], loads: int, options: Mapping[str, Any]
) -> Measured:
    """Loads a checkpoint ``loads`` times, in turns with the peers; the last load is kept.

    If a peer only reads floats in Hugging Face's layout, it gets a conversion of any other checkpoint. That is written
    before its first load, and is not timed.

    Raises:
        CoreError: any error of ``core.load`` or ``core.convert``, or a peer fails.
    """
    ours: list[float] = []
    theirs: list[list[tuple[float, int]]] = [[] for _ in peers]
    peak = 0
    with contextlib.ExitStack() as stack:
        floats: Path | None = None
        for _ in range(loads):
            lm = None
            gc.collect()
            mx.clear_cache()
            mx.reset_peak_memory()
            started = time.perf_counter()
            lm = load(source, **options)
            ours.append(time.perf_counter() - started)
            peak = max(peak, mx.get_peak_memory())
            assert lm.origin is not None
            path = lm.origin.checkpoint.path
            assert path is not None  # a loaded checkpoint is local
            bits = frozenset(setting.bits for setting in settings_of(lm.model))
            for found, peer in zip(theirs, peers, strict=True):
                if peer.reads_floats and floats is None:
                    floats = path
                    if bits or lm.report.plan.layout != "hf":
                        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="corelm-floats-"))
                        floats = Path(folder) / "checkpoint"
                        named = {name: options[name] for name in _READING if name in options}
                        convert(source, floats, layout="hf", dequantize=True, **named)
                found.append(peer.load(floats if peer.reads_floats and floats is not None else path, bits))
    assert lm is not None
    assert lm.origin is not None
    built = BuiltModel(lm.model, lm.config, lm.origin.plugin)
    return _measured(
        built,
        lm.report.plan.compute_dtype,
        name=os.fspath(source),
        random=False,
        loading=Loading(Spread.of(ours), peak),
        peer_loadings=tuple(
            Loading(Spread.of(seconds for seconds, _ in found), max(held for _, held in found)) for found in theirs
        ),
    )


def from_shape(shape: Shape, peers: Sequence[PeerProcess], dtype: mx.Dtype | str | None) -> Measured:
    """Fills a shape with random weights, on all sides.

    Raises:
        CoreError: the config is refused, or a peer fails.
    """
    built, compute = random_model(shape, dtype_from(dtype))
    for peer in peers:
        peer.make(shape)
    return _measured(built, compute, name=shape.name, random=True, loading=None, peer_loadings=())


def _measured(
    built: BuiltModel,
    compute: mx.Dtype,
    *,
    name: str,
    random: bool,
    loading: Loading | None,
    peer_loadings: tuple[Loading, ...],
) -> Measured:
    subject = Subject(
        name=name,
        model_type=built.config.model_type,
        plugin=built.plugin.name,
        random=random,
        layers=built.config.num_hidden_layers,
        parameters=parameter_count(built.model),
        weight_bytes=weight_bytes(built.model),
        quantization="; ".join(map(str, settings_of(built.model))) or "none",
        compute_dtype=spelling(compute),
    )
    limit = getattr(built.config, "max_position_embeddings", None)
    return Measured(subject, limit, loading, peer_loadings, built, compute)
