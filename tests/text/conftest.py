"""Tokenizers of Mistral's vocabularies, made once: none of them changes after it is made."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from core.text import TextFiles, Tokenizer, load_tokenizer

from .references import STORIES
from .vocabularies import DATA, TEKKEN, config, sentencepiece_json, tekken_json

TEKKEN_WORDS = 21_000  # of 131,072: enough for the test texts, and quick to build

Make = Callable[..., Tokenizer]


@cache
def vocabulary(name: str) -> bytes:
    """``tokenizer.json``: ``v1-legacy``, ``v3-metaspace``, …, or ``tekken``."""
    return tekken_json(TEKKEN_WORDS) if name == "tekken" else sentencepiece_json(*name.split("-"))


@pytest.fixture(scope="session")
def make() -> Make:
    """Makes a tokenizer of a vocabulary: ``make("v3-metaspace", template)``."""

    @cache
    def made(name: str, template: str | None = None) -> Tokenizer:
        templates = {} if template is None else {"default": template}
        return Tokenizer.from_files(TextFiles(vocabulary(name), tokenizer_config=config(), chat_templates=templates))

    return made


@pytest.fixture(scope="session")
def stories() -> Tokenizer:
    """A byte-fallback vocabulary of 512 tokens, loaded from a directory."""
    return load_tokenizer(STORIES)


@pytest.fixture(scope="session")
def small_tekken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first words of Tekken as mistral-common reads them."""
    tekken = json.loads((DATA / TEKKEN).read_bytes())
    tekken["config"]["default_vocab_size"] = TEKKEN_WORDS
    path = tmp_path_factory.mktemp("tekken") / TEKKEN
    path.write_text(json.dumps(tekken))
    return path


@pytest.fixture(scope="session")
def tekken_reference(small_tekken: Path) -> Callable[..., list[int]]:
    """Ids of a conversation and its tools by mistral-common."""
    from mistral_common.protocol.instruct.request import ChatCompletionRequest
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    tokenizer = MistralTokenizer.from_file(str(small_tekken))

    def ids(messages: list[Any], tools: list[Any] | None) -> list[int]:
        encoded = tokenizer.encode_chat_completion(ChatCompletionRequest(messages=messages, tools=tools))
        return list(encoded.tokens)

    return ids


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Writes a directory with the small tokenizer and further files; a dict is written as JSON, None removes a file."""

    def write(**files: Any) -> Path:
        for path in STORIES.iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        for key, content in files.items():
            name = key.replace("__", ".")
            if content is None:
                (tmp_path / name).unlink()
            elif isinstance(content, bytes | str):
                (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
            else:
                (tmp_path / name).write_text(json.dumps(content))
        return tmp_path

    return write
