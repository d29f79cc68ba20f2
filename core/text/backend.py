"""Opens ``tokenizer.json`` with the ``tokenizers`` package, and reports that package's errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import TokenizerError, first_line
from core.text.files import parse_json_object

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend


def open_backend(data: bytes, where: Path | None) -> Backend:
    """A tokenizer that neither truncates nor pads, whatever settings training left in its file.

    Raises:
        TokenizerError: ``data`` is not JSON, or ``tokenizers`` refuses it.
    """
    import tokenizers

    try:
        backend = tokenizers.Tokenizer.from_buffer(data)
    except BaseException as error:
        if not is_failure(error):
            raise
        parse_json_object(data, where, TokenizerError)
        raise TokenizerError(
            f"is refused by tokenizers {tokenizers.__version__}: {error}",
            where=where,
            hint="It may need a newer version of the tokenizers package, or be damaged.",
        ) from error
    backend.no_truncation()
    backend.no_padding()
    return backend


def is_failure(error: BaseException) -> bool:
    """Whether it is an error or a panic of the package (which is not an `Exception`), and not an interruption."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def failure(doing: str, error: BaseException, where: Path | None = None) -> TokenizerError:
    """The error for a failure of the package while ``doing`` something."""
    return TokenizerError(
        f"tokenizers fails on {doing}: {first_line(error)}",
        where=where,
        hint="Its rules are too much for this text, or tokenizer.json is damaged.",
    )


def parts(component: Any) -> list[dict[str, Any]]:
    """The parts of a normalizer, pre-tokenizer or decoder, with sequences flattened; empty without a component."""
    if component is None:
        return []

    def flat(part: dict[str, Any]) -> list[dict[str, Any]]:
        inner = next((part[key] for key in ("normalizers", "pretokenizers", "decoders") if key in part), None)
        return [part] if inner is None else [leaf for item in inner for leaf in flat(item)]

    return flat(json.loads(component.__getstate__()))
