"""``Benchmark``: the figures of a benchmark, with their spread.

The fields are the JSON that ``corelm bench --json`` prints. While ``schema`` is the same, later versions may add
fields, but not rename or remove any.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Spread:
    """Several measurements of one quantity, in the order in which they were made."""

    median: float
    min: float
    max: float
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Of one value or more."""
        found = tuple(values)
        return cls(statistics.median(found), min(found), max(found), found)

    def over(self, other: Spread) -> Spread:
        """Ratios of measurements that were made in turns, pair by pair."""
        return Spread.of(mine / theirs for mine, theirs in zip(self.values, other.values, strict=True))


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine of the benchmark.

    Attributes:
        device: backend and name; system, python: of the host.
        core, mlx: versions.
        bandwidth: bytes a second of the device's memory: on a GPU of a large copy, reads and writes counted, on a CPU
            of reads.
        bandwidth_how: what was copied or read.
    """

    device: str
    system: str
    python: str
    core: str
    mlx: str
    bandwidth: Spread
    bandwidth_how: str


@dataclass(frozen=True, slots=True)
class Subject:
    """What was measured.

    Attributes:
        name: as it was asked for; model_type, plugin: its architecture and who built it.
        random: weights are random; else they are the checkpoint's.
        layers: blocks; parameters: weights, the elements of quantized matrices counted and not their scales.
        weight_bytes: of all weights in memory.
        quantization: settings of the quantized matrices, as text; ``none`` where there are none.
        compute_dtype: of the activations.
    """

    name: str
    model_type: str
    plugin: str
    random: bool
    layers: int
    parameters: int
    weight_bytes: int
    quantization: str
    compute_dtype: str


@dataclass(frozen=True, slots=True)
class Loading:
    """Loads of the checkpoint, tokenizer included.

    Attributes:
        seconds: wall time; of the first, the file cache may have been cold.
        peak_memory: bytes, the most that MLX held.
    """

    seconds: Spread
    peak_memory: int


@dataclass(frozen=True, slots=True)
class Speed:
    """One side's runs of one prompt length.

    Attributes:
        first_token: seconds until the first new token was there.
        prefill: prompt tokens a second until then.
        decode: new tokens a second after the first.
        peak_memory: bytes, the most that MLX or PyTorch held on the device during a run, weights included; of a peer
            without MLX on a CPU, the most that its process had resident.
    """

    first_token: Spread
    prefill: Spread
    decode: Spread
    peak_memory: int


@dataclass(frozen=True, slots=True)
class Ratio:
    """Our speed over the peer's, of runs that took turns."""

    prefill: Spread
    decode: Spread


@dataclass(frozen=True, slots=True)
class Length:
    """The runs of one prompt length.

    Attributes:
        prompt_tokens: its tokens; context: tokens that a decode step attended to, on average.
        step_bytes: bytes that such a step must read: the cache, and the weights, with only those experts that a token
            uses.
        decode_limit: tokens a second if a step only took the time to read these, at the machine's bandwidth.
        fraction: median decode speed over that limit.
        speed: ours.
        peers, ratios: one for each of the benchmark's peers, in their order.
        peer, ratio: the first of them; null without a peer.
    """

    prompt_tokens: int
    context: int
    step_bytes: int
    decode_limit: float
    fraction: float
    speed: Speed
    peer: Speed | None = None
    ratio: Ratio | None = None
    peers: tuple[Speed, ...] = ()
    ratios: tuple[Ratio, ...] = ()


@dataclass(frozen=True, slots=True)
class Peer:
    """A program that ran in turns with ours, in a process of its own.

    Attributes:
        name: as the user gave it; version: of the package.
        loading: of the same checkpoint; null for random weights.
        load_ratio: our seconds over the peer's.
        weights: the format of its weights; null if it is the same as ours.
    """

    name: str
    version: str
    loading: Loading | None
    load_ratio: Spread | None
    weights: str | None = None


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A finished benchmark.

    Attributes:
        schema: version of this format.
        loading: null for random weights.
        iterations, generate: counted runs of each length, after one that is not, and new tokens of each.
        lengths: in ascending order.
        peers: in the order in which they were asked for; peer: the first of them, null without one.
        notes: what else a reader should know, one sentence each.
    """

    schema: int
    subject: Subject
    machine: Machine
    loading: Loading | None
    iterations: int
    generate: int
    lengths: tuple[Length, ...]
    peer: Peer | None = None
    notes: tuple[str, ...] = ()
    peers: tuple[Peer, ...] = ()
