"""The peers to measure against: what must be installed, the formats of their weights, and how a user names one."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from core.errors import BenchmarkError, UsageError


@dataclass(frozen=True, slots=True)
class PeerKind:
    """A program to measure against.

    Attributes:
        modules: must be installed.
        side: the file with its side.
        install: the packages for pip.
        formats: of weights, which may follow the name after a colon; empty if the peer reads our checkpoints itself,
            with the weights in our format.
        usual: bits of our quantization, None for none → the format to compare with it.
    """

    modules: tuple[str, ...]
    side: str
    install: str
    formats: tuple[str, ...] = ()
    usual: Mapping[int | None, str] = field(default_factory=dict)


PEERS = {
    "mlx-lm": PeerKind(("mlx_lm",), "mlx_lm_side.py", "mlx-lm"),
    "transformers": PeerKind(
        ("transformers", "torch"),
        "transformers_side.py",
        "transformers torch",
        ("bfloat16", "float32"),
        {None: "bfloat16"},
    ),
    "llama.cpp": PeerKind(
        ("llama_cpp", "gguf"),
        "llama_cpp_side.py",
        "llama-cpp-python gguf",
        ("F32", "F16", "BF16", "Q8_0", "Q4_0"),
        {None: "BF16", 8: "Q8_0", 4: "Q4_0"},
    ),
}


@dataclass(frozen=True, slots=True)
class PeerName:
    """A peer as a user names it: ``mlx-lm``, ``llama.cpp:Q4_0``.

    Attributes:
        text: as the user wrote it.
        kind: of ``PEERS``.
        format: of its weights, if the user gave one.
    """

    text: str
    kind: PeerKind
    format: str | None

    def format_beside(self, bits: frozenset[int]) -> str | None:
        """The format of its weights to compare with ours; None if it uses ours.

        Args:
            bits: of our quantized matrices; empty without any.

        Raises:
            UsageError: no format corresponds to ours, and none was given.
        """
        if self.format is not None or not self.kind.formats:
            return self.format
        ours = None if not bits else next(iter(bits)) if len(bits) == 1 else -1
        if ours not in self.kind.usual:
            shown = " and ".join(map(str, sorted(bits)))
            raise UsageError(
                f"{self.text} has no format that corresponds to weights of {shown} bits",
                hint=f"Name the format: {self.text}:{self.kind.formats[-1]}.",
            )
        return self.kind.usual[ours]


def check_peer(text: str) -> PeerName:
    """Checks that a peer is known and installed.

    Raises:
        UsageError: there is no such peer, or it has no such format.
        BenchmarkError: it is not installed.
    """
    name, colon, chosen = text.partition(":")
    if name not in PEERS:
        raise UsageError(f"{name!r} is not a known peer", expected=", ".join(PEERS), found=name)
    kind = PEERS[name]
    if colon and chosen not in kind.formats:
        expected = ", ".join(f"{name}:{each}" for each in kind.formats) or f"{name} alone"
        raise UsageError(f"{name} has no such format", expected=expected, found=text)
    for module in kind.modules:
        if importlib.util.find_spec(module) is None:
            raise BenchmarkError(
                f"{name} is not installed: there is no module {module}",
                where=sys.prefix,
                hint=f"pip install {kind.install}; core needs it for this comparison only.",
            )
    return PeerName(text, kind, chosen or None)
