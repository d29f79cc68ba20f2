"""Finds the special tokens: BOS, EOS, tokens with names, and the ids around a raw prompt.

They are read from ``tokenizer_config.json``, ``special_tokens_map.json`` and the ids in ``config.json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import ConfigError, TokenizerError
from core.text.backend import failure, is_failure
from core.text.files import Json, TextFiles

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend


@dataclass(frozen=True)
class SpecialTokens:
    """The tokens with a role.

    Attributes:
        names: role to literal (``{"bos_token": "<s>", …}``), as templates get them.
        bos_id: begin of sequence; None when the tokenizer has none.
        eos_ids: every id that ends a text.
        ids: the ids of BOS and EOS, which are control tokens even if ``tokenizer.json`` does not mark them.
        prefix, suffix: ids put before and after a raw prompt.
    """

    names: Mapping[str, str]
    bos_id: int | None
    eos_ids: frozenset[int]
    ids: frozenset[int]
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]


def read_special_tokens(backend: Backend, files: TextFiles) -> SpecialTokens:
    """The special tokens of a checkpoint. ``backend`` must have all its added tokens (`complete_added_tokens`)."""
    names = token_names(files)
    bos_id = _role_id(backend, names, "bos_token", files)
    if bos_id is None and not _states(files, "bos_token"):
        # No tokenizer file names a BOS, so the id in the model's config is used.
        stated = [_one_id(config.get("bos_token_id")) for config in (files.generation_config, files.config)]
        added = backend.get_added_tokens_decoder()
        bos_id = next((i for i in stated if i is not None and i in added), None)
    bos = None if bos_id is None else backend.id_to_token(bos_id)
    if bos is not None:
        names["bos_token"] = bos
    eos_id = _role_id(backend, names, "eos_token", files)
    eos_ids = eos_ids_of(files.generation_config, "generation_config.json", files) | eos_ids_of(
        files.config, "config.json", files
    )
    if eos_id is not None:
        eos_ids |= {eos_id}
    prefix, suffix = _wrapping(backend, files.where)
    prefix = _governed(prefix, bos_id, files.tokenizer_config.get("add_bos_token"), at_start=True)
    suffix = _governed(suffix, eos_id, files.tokenizer_config.get("add_eos_token"), at_start=False)
    ids = frozenset(token_id for token_id in (bos_id, eos_id) if token_id is not None)
    return SpecialTokens(names, bos_id, eos_ids, ids, prefix, suffix)


def literal_of(value: object) -> str | None:
    """The literal of a token that a file gives as a string, or as an object with ``content``."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def _check_unicode(literal: str | None, name: str, where: Path | None) -> None:
    try:
        (literal or "").encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"{name} is not valid Unicode: it has half of a surrogate pair", where=where, found=ascii(literal)[:60]
        ) from error


def token_names(files: TextFiles) -> dict[str, str]:
    """Role to literal, from ``tokenizer_config.json``; the rest from ``special_tokens_map.json``."""
    names: dict[str, str] = {}
    for source in (files.special_tokens_map, files.tokenizer_config):
        for role, value in source.items():
            if role.endswith("_token") and not isinstance(value, bool):
                literal = literal_of(value)
                _check_unicode(literal, role, files.where)
                if literal is not None:
                    names[role] = literal
                else:
                    names.pop(role, None)
    return names


def complete_added_tokens(backend: Backend, files: TextFiles) -> None:
    """Adds the tokens that ``tokenizer_config.json`` names and ``tokenizer.json`` lacks, as transformers does.

    Tokens of ``added_tokens_decoder`` get the ids stated there. A BOS or EOS that is an ordinary word of the vocabulary
    becomes an added token, so that its literal in a template is one id.

    Raises:
        TokenizerError: an id of ``added_tokens_decoder`` that contradicts ``tokenizer.json``.
    """
    from tokenizers import AddedToken

    where = None if files.where is None else files.where / "tokenizer_config.json"
    decoder = files.tokenizer_config.get("added_tokens_decoder")
    entries = decoder if isinstance(decoder, Mapping) else {}
    for key, entry in sorted(entries.items(), key=lambda item: (len(str(item[0])), str(item[0]))):
        literal = literal_of(entry)
        _check_unicode(literal, f"added_tokens_decoder[{key!r}]", where)
        if literal is None or backend.token_to_id(literal) is not None:
            continue
        flags = {name: entry.get(name) is True for name in ("single_word", "lstrip", "rstrip", "normalized", "special")}
        token = AddedToken(literal, **flags)
        if flags["special"]:
            backend.add_special_tokens([token])
        else:
            backend.add_tokens([token])
        if str(backend.token_to_id(literal)) != str(key):
            raise TokenizerError(
                f"added_tokens_decoder gives {literal!r} an id that tokenizer.json has no room for",
                where=where,
                expected=backend.token_to_id(literal),
                found=key,
            )
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    names = token_names(files)
    for literal in (names.get("bos_token"), names.get("eos_token")):
        if literal is not None and literal not in added and backend.token_to_id(literal) is not None:
            backend.add_special_tokens([AddedToken(literal, normalized=False, special=True)])


def eos_ids_of(config: Json, name: str, files: TextFiles) -> frozenset[int]:
    """``eos_token_id`` of a config: absent, null, one id or a list of ids.

    Raises:
        ConfigError: anything else.
    """
    value = config.get("eos_token_id")
    text_config = config.get("text_config")
    if value is None and isinstance(text_config, Mapping):
        value = text_config.get("eos_token_id")
    values = value if isinstance(value, list | tuple) else [] if value is None else [value]
    ids = [_one_id(item) for item in values]
    if any(item is None for item in ids):
        raise ConfigError(
            "eos_token_id is neither an id nor a list of ids",
            where=None if files.where is None else files.where / name,
            expected="int or list of int",
            found=repr(value),
        )
    return frozenset(item for item in ids if item is not None)


def _one_id(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _states(files: TextFiles, role: str) -> bool:
    return role in files.tokenizer_config or role in files.special_tokens_map


def _role_id(backend: Backend, names: Mapping[str, str], role: str, files: TextFiles) -> int | None:
    literal = names.get(role)
    if literal is None:
        return None
    token_id: int | None = backend.token_to_id(literal)
    if token_id is None:
        raise TokenizerError(
            f"{role} {literal!r} is not in the vocabulary",
            where=files.where,
            hint="tokenizer.json and tokenizer_config.json belong to different models: take both from one revision.",
        )
    return token_id


def _wrapping(backend: Backend, where: Path | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that the post-processor puts around a text, found by comparing a text with and without it."""
    try:
        bare = backend.encode("a", add_special_tokens=False).ids
        full = backend.encode("a", add_special_tokens=True).ids
    except BaseException as error:
        if not is_failure(error):
            raise
        raise failure("the text 'a'", error, where) from error
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return tuple(full[:start]), tuple(full[start + len(bare) :])
    return (), ()  # a post-processor that rewrites the text itself adds nothing around it


def _governed(ids: tuple[int, ...], token_id: int | None, stated: object, *, at_start: bool) -> tuple[int, ...]:
    """``ids`` with ``token_id`` added or removed if ``add_bos_token`` or ``add_eos_token`` is stated."""
    if token_id is None or not isinstance(stated, bool) or stated == (token_id in ids):
        return ids
    if not stated:
        return tuple(i for i in ids if i != token_id)
    return (token_id, *ids) if at_start else (*ids, token_id)
