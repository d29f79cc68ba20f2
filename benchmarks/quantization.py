"""Perplexity by quantization, as a Markdown table: the demo models, on the text that was held out of their training.

    python examples/train_demo.py mistral --out 4bit/mistral --full full/mistral
    python examples/train_demo.py mixtral --out 4bit/mixtral --full full/mixtral
    python benchmarks/quantization.py full [--against-full] [--context 256] [--max-tokens N]

The argument is a directory of full-precision checkpoints, one for each model; each is quantized as it is read
(``core.load(…, quantize=…)``), in groups of 64 or as the mode has them. The text is the last 10 % of the
lines of the corpus, read as ``core.evaluate`` does.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten

import core
from core.evaluation import Evaluation
from core.weights.dtypes import FLOATS, spelling

CORPUS = Path(__file__).parents[1] / "examples" / "corpus" / "tinyshakespeare.txt"


@dataclass(frozen=True)
class Format:
    """How matrices are stored; without settings, as the checkpoint has them."""

    name: str
    settings: int | str | None = None


FORMATS = [
    Format("full"),
    *(Format(f"{bits} bits", bits) for bits in (8, 6, 5, 4, 3, 2)),
    *(Format(mode, mode) for mode in ("mxfp8", "mxfp4", "nvfp4")),
]


def held_out() -> str:
    """The last 10 % of the corpus's lines, as ``examples/train_demo.py`` splits it."""
    lines = CORPUS.read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(lines[len(lines) * 9 // 10 :])


def stored_dtype(lm: core.LanguageModel) -> mx.Dtype:
    """The dtype that most parameters have in the checkpoint."""
    count = Counter(entry.storage for entry in lm.report.plan.entries if entry.storage in FLOATS)
    return FLOATS[count.most_common(1)[0][0]]


def load(path: Path, how: Format, dtype: mx.Dtype | None) -> core.LanguageModel:
    """A model that is quantized as it is read."""
    return core.load(path, dtype=dtype, quantize=how.settings)


def bits_per_weight(lm: core.LanguageModel) -> float:
    """Bits for each weight in a checkpoint: scales and biases included, floats in the checkpoint's dtype."""
    width = stored_dtype(lm).size
    arrays = [array for _, array in tree_flatten(lm.model.parameters())]
    stored = sum(a.size * width if mx.issubdtype(a.dtype, mx.floating) else a.nbytes for a in arrays)
    return stored * 8 / lm.report.plan.parameters


def label(how: Format, lm: core.LanguageModel) -> str:
    """The name of a row; full precision is named by its dtype."""
    return spelling(stored_dtype(lm)) if how.settings is None else how.name


def row(name: str, bits: float, found: Evaluation) -> str:
    """One line of the table."""
    divergence = found.divergence
    assert found.bits_per_byte is not None
    cells = [name, f"{bits:.2f}", f"{found.perplexity:.3f}", f"{found.bits_per_byte:.4f}"]
    if divergence is not None:
        cells += [f"{divergence.mean:.5f}", f"{divergence.p99:.4f}", f"{divergence.top1_agreement:.1%}"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="holds one full-precision checkpoint for each model")
    parser.add_argument("--against-full", action="store_true", help="KL divergence from full precision, too")
    parser.add_argument("--context", type=int, default=256, help="tokens of a window (default: as in training)")
    parser.add_argument("--max-tokens", type=int, help="read only so many tokens")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="default: the checkpoint's")
    arguments = parser.parse_args()
    dtype = None if arguments.dtype is None else getattr(mx, arguments.dtype)
    text = held_out()
    for path in sorted(path.parent for path in arguments.directory.glob("*/config.json")):
        full = core.load(path, dtype=dtype)
        header = ["", "bits a weight", "perplexity", "bits a byte"]
        if arguments.against_full:
            header += ["mean KL", "99 % KL", "same top-1"]
        rows = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
        for how in FORMATS:
            lm = load(path, how, dtype)
            found = core.evaluate(
                lm,
                text,
                against=full if arguments.against_full else None,
                context=arguments.context,
                max_tokens=arguments.max_tokens,
            )
            rows.append(row(label(how, lm), bits_per_weight(lm), found))
        print(
            f"\n**{path.name}** ({found.tokens:,} tokens, context {found.context}, stride {found.stride}, "
            f"{found.model.device}, MLX {mx.__version__})\n"
        )
        print("\n".join(rows), flush=True)


if __name__ == "__main__":
    main()
