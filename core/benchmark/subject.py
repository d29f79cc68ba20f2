"""What is measured: a checkpoint loaded a few times, or a shape filled with random weights, by us and by the peer.

Knows how a model comes to be there, and what it holds; knows nothing of runs.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from core.benchmark.peer import PeerProcess
from core.benchmark.random_model import random_model
from core.benchmark.result import Loading, Spread, Subject
from core.benchmark.shapes import Shape
from core.benchmark.traffic import parameter_count, step_cache_bytes, step_weight_bytes, weight_bytes
from core.loading import BuiltModel, load
from core.nn import Decoder
from core.weights.dtypes import dtype_from, spelling
from core.weights.quantization import settings_of


@dataclass(frozen=True)
class Measured:
    """A model that is ready to run, on our side and, where there is one, on the peer's.

    Attributes:
        subject: what a report says of it.
        limit: tokens that the model was made for; None where it does not say.
        loading, peer_loading: None for random weights, and without a peer.
    """

    subject: Subject
    limit: int | None
    loading: Loading | None
    peer_loading: Loading | None
    built: BuiltModel = field(repr=False)
    compute_dtype: mx.Dtype = field(repr=False)

    @property
    def model(self) -> Decoder:
        """Our side's."""
        return self.built.model

    def step_bytes(self, context: int) -> int:
        """Bytes that a decode step of one sequence must read: weights, and a cache of ``context`` tokens."""
        config, plugin = self.built.config, self.built.plugin
        specs = [plugin.make_cache(config, index) for index in range(config.num_hidden_layers)]
        weights = step_weight_bytes(self.model, getattr(config, "num_experts_per_tok", None))
        return weights + step_cache_bytes(specs, context, self.compute_dtype)


def from_checkpoint(
    source: str | os.PathLike[str], peer: PeerProcess | None, loads: int, options: Mapping[str, Any]
) -> Measured:
    """Loads a checkpoint ``loads`` times, in turns with the peer; the last load is kept.

    Raises:
        CoreError: whatever ``core.load`` raises, or the peer fails.
    """
    ours: list[float] = []
    theirs: list[float] = []
    peak = peer_peak = 0
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
        if peer is not None:
            path = lm.origin.checkpoint.path
            assert path is not None  # what is loaded is local
            seconds, held = peer.load(path)
            theirs.append(seconds)
            peer_peak = max(peer_peak, held)
    assert lm is not None
    assert lm.origin is not None
    built = BuiltModel(lm.model, lm.config, lm.origin.plugin)
    return _measured(
        built,
        lm.report.plan.compute_dtype,
        name=os.fspath(source),
        random=False,
        loading=Loading(Spread.of(ours), peak),
        peer_loading=Loading(Spread.of(theirs), peer_peak) if theirs else None,
    )


def from_shape(shape: Shape, peer: PeerProcess | None, dtype: mx.Dtype | str | None) -> Measured:
    """Fills a shape with random weights, on both sides.

    Raises:
        CoreError: the config is refused, or the peer fails.
    """
    built, compute = random_model(shape, dtype_from(dtype))
    if peer is not None:
        peer.make(shape)
    return _measured(built, compute, name=shape.name, random=True, loading=None, peer_loading=None)


def _measured(
    built: BuiltModel,
    compute: mx.Dtype,
    *,
    name: str,
    random: bool,
    loading: Loading | None,
    peer_loading: Loading | None,
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
    return Measured(subject, limit, loading, peer_loading, built, compute)
