"""Reads and parses the text files of a checkpoint: tokenizer files, configs and chat templates."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from core.checkpoint import decode, parse_object, read_local
from core.errors import ChatTemplateError, ConfigError, CoreError, TokenizerError

Json = Mapping[str, object]
DEFAULT_TEMPLATE = "default"
TOOL_TEMPLATE = "tool_use"


@dataclass(frozen=True)
class TextFiles:
    """The text files of a checkpoint.

    Attributes:
        tokenizer: the bytes of ``tokenizer.json``.
        tokenizer_config, special_tokens_map, generation_config, config: the parsed files of these names, empty
            when absent.
        chat_templates: name to jinja2 source; the one used by default is called ``"default"``.
        where: the directory, named in errors.
        template_where: the file that the templates came from, named in errors.
    """

    tokenizer: bytes
    tokenizer_config: Json = field(default_factory=dict)
    special_tokens_map: Json = field(default_factory=dict)
    generation_config: Json = field(default_factory=dict)
    config: Json = field(default_factory=dict)
    chat_templates: Mapping[str, str] = field(default_factory=dict)
    where: Path | None = None
    template_where: Path | None = None

    @classmethod
    def read(
        cls,
        directory: str | os.PathLike[str],
        *,
        config: Json | None = None,
        generation_config: Json | None = None,
    ) -> TextFiles:
        """Reads the text files of a checkpoint.

        Args:
            directory: holds ``tokenizer.json``; every other file is optional.
            config, generation_config: already parsed; read from the directory when not given.

        Raises:
            TokenizerError: no ``tokenizer.json``, or a tokenizer file that is not readable or not a JSON object.
            ConfigError: the same for ``config.json`` and ``generation_config.json``.
            ChatTemplateError: a template that is not text.
        """
        path = Path(directory)
        tokenizer = read_local(path / "tokenizer.json", error=TokenizerError)
        if tokenizer is None:
            raise _no_tokenizer(path)
        tokenizer_config = _read_json(path / "tokenizer_config.json", TokenizerError)
        templates, template_where = _chat_templates(path, tokenizer_config)
        return cls(
            tokenizer=tokenizer,
            tokenizer_config=tokenizer_config,
            special_tokens_map=_read_json(path / "special_tokens_map.json", TokenizerError),
            generation_config=_given_or_read(generation_config, path / "generation_config.json"),
            config=_given_or_read(config, path / "config.json"),
            chat_templates=templates,
            where=path,
            template_where=template_where,
        )


def _read_json(path: Path, error_type: type[CoreError]) -> Json:
    data = read_local(path, error=error_type)
    return {} if data is None else parse_json_object(data, path, error_type)


def _given_or_read(given: Json | None, path: Path) -> Json:
    return _read_json(path, ConfigError) if given is None else given


def parse_json_object(data: bytes, where: Path | None, error_type: type[CoreError]) -> Json:
    """``data`` as a JSON object. Raises ``error_type`` if it is anything else."""
    return parse_object(data, where="tokenizer.json" if where is None else str(where), error=error_type)


def _no_tokenizer(path: Path) -> TokenizerError:
    """The error for a directory without ``tokenizer.json``: what is there instead, and what to do."""
    if not path.is_dir():
        return TokenizerError("is not a directory", where=path)
    remedies = {
        "tokenizer.model": "It has tokenizer.model only (SentencePiece).",
        "vocab.json": "It has vocab.json only (a slow tokenizer).",
    }
    found = [name for name in remedies if (path / name).exists()]
    found += sorted(entry.name for entry in path.glob("tokenizer.model.*"))
    convert = (
        "Take tokenizer.json from the model's Hugging Face repository, or convert it with transformers' AutoTokenizer."
    )
    hint = f"{remedies[found[0]]} {convert}" if found and found[0] in remedies else convert
    return TokenizerError("no tokenizer.json", where=path, found=", ".join(found) or None, hint=hint)


def _chat_templates(path: Path, tokenizer_config: Json) -> tuple[dict[str, str], Path | None]:
    """Templates by name. ``chat_template.jinja`` takes precedence over ``chat_template.json``, and that over the
    config."""
    jinja = path / "chat_template.jinja"
    source = read_local(jinja, error=ChatTemplateError)
    if source is not None:
        templates = {DEFAULT_TEMPLATE: _decode(source, jinja)}
        for extra in sorted((path / "additional_chat_templates").glob("*.jinja")):
            templates[extra.stem] = _decode(read_local(extra, error=ChatTemplateError) or b"", extra)
        return templates, jinja
    for where, content in (
        (path / "chat_template.json", _read_json(path / "chat_template.json", ChatTemplateError)),
        (path / "tokenizer_config.json", tokenizer_config),
    ):
        if content.get("chat_template") is not None:
            return named_templates(content["chat_template"], where), where
    return {}, None


def _decode(source: bytes, where: Path) -> str:
    return decode(source, where=str(where), error=ChatTemplateError).removeprefix("\ufeff")


def named_templates(value: object, where: Path | None = None) -> dict[str, str]:
    """Templates by name, from the forms that ``chat_template`` takes: a string, an object, or a list of objects."""
    if isinstance(value, str):
        return {DEFAULT_TEMPLATE: value}
    templates: dict[object, object]
    if isinstance(value, Mapping):
        templates = dict(value)
    elif isinstance(value, list) and all(isinstance(entry, Mapping) for entry in value):
        templates = {entry.get("name"): entry.get("template") for entry in value}
    else:
        templates = {None: None}
    named = {name: text for name, text in templates.items() if isinstance(name, str) and isinstance(text, str)}
    if len(named) != len(templates):
        raise ChatTemplateError(
            "chat_template has an unknown form",
            where=where,
            expected="a string, or a list of {name, template}",
            found=type(value).__name__,
        )
    return named
