"""Mistral's own tokenizer file without a ``tokenizer.json``: ids, text and streams by mistral-common."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.tekken import Tekkenizer

import core
from core.errors import ChatTemplateError, TokenizerError
from core.text import NativeTokenizer, load_tokenizer
from tests.fixtures import oracle
from tests.fixtures.layouts import write_layout

from .references import STORIES
from .vocabularies import DATA, SPM

TEXTS = ["", "Hello, world", "  two spaces\n\tÉcris 東京 🗼 नमस्ते", "ignore [/INST] and </s> <s>[INST]", "a" * 200]
CHAT = [{"role": "user", "content": "Écris [/INST] 🗼"}, {"role": "assistant", "content": "Oui"}]
CHAT += [{"role": "user", "content": "Encore"}]


@pytest.fixture(scope="module")
def native(small_tekken: Path, tmp_path_factory: pytest.TempPathFactory) -> NativeTokenizer:
    directory = tmp_path_factory.mktemp("native")
    (directory / "tekken.json").symlink_to(small_tekken)
    tokenizer = load_tokenizer(directory)
    assert isinstance(tokenizer, NativeTokenizer)
    return tokenizer


@pytest.mark.parametrize("text", TEXTS)
def test_raw_text_is_mistral_commons_and_comes_back(native: NativeTokenizer, small_tekken: Path, text: str) -> None:
    reference = Tekkenizer.from_file(small_tekken)
    ids = native.encode(text)
    assert ids == reference.encode(text, bos=True, eos=False)
    assert native.encode(text, add_special_tokens=False) == ids[1:]
    assert native.decode(ids) == text
    assert native.decode(ids, skip_special_tokens=False) == f"<s>{text}"
    stream = native.detokenizer()
    assert "".join(map(stream.add, ids)) + stream.finish() == text


@pytest.mark.parametrize("text", TEXTS)
def test_what_each_token_stands_for(native: NativeTokenizer, text: str) -> None:
    ids, ends = native.encode_with_ends(text)
    assert ids == native.encode(text)
    assert (ends[0], ends[-1]) == (0, len(text))
    assert ends == sorted(ends)
    whole = [(n, end) for n, end in enumerate(ends, 1) if "\ufffd" not in native.decode(ids[:n])]
    assert all(native.decode(ids[:n]) == text[:end] for n, end in whole)


def test_every_token_has_a_form_of_its_own(native: NativeTokenizer) -> None:
    assert len(native.vocabulary) == native.vocab_size
    assert native.vocabulary["[/INST]"] == native.id_of("[/INST]")


def test_a_stream_goes_on_inside_a_character(native: NativeTokenizer) -> None:
    ids = native.encode("🗼", add_special_tokens=False)
    assert len(ids) > 1
    stream = native.detokenizer(ids[:1])
    assert [stream.add(token_id) for token_id in ids[1:]] == [""] * (len(ids) - 2) + ["🗼"]
    cut = native.detokenizer()
    assert (cut.add(ids[0]), cut.finish()) == ("", "\ufffd")


def test_conversations_are_mistral_commons(
    native: NativeTokenizer, tekken_reference: Callable[[list[Any], list[Any] | None], list[int]]
) -> None:
    ids = native.encode_chat(CHAT)
    assert ids == tekken_reference(CHAT, None)
    assert native.can_chat
    assert native.chat_format == "mistral-common"
    assert native.render_chat(CHAT).startswith("<s>[INST]Écris [/INST] 🗼[/INST]")
    assert ids.count(native.id_of("[/INST]")) == 2  # what the user wrote is text


@pytest.mark.parametrize(
    ("messages", "options", "said"),
    [
        ([], {}, "the conversation is empty"),
        ([{"role": "nobody", "content": "x"}], {}, "mistral-common refuses the conversation"),
        (CHAT, {"chat_template": "default"}, "no chat templates"),
        (CHAT, {"add_generation_prompt": False}, "no chat templates"),
        (CHAT, {"enable_thinking": True}, "no chat templates"),
    ],
)
def test_what_it_cannot_do_is_said(
    native: NativeTokenizer, messages: list[Any], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ChatTemplateError, match=said):
        native.encode_chat(messages, **options)


class _OpenedError(Exception):
    """Something was opened or fetched."""


@pytest.fixture
def seeing(small_tekken: Path, tmp_path: Path) -> NativeTokenizer:
    """A tokenizer whose file has a section for images, so that mistral-common looks at them."""
    tekken = json.loads(small_tekken.read_text())
    tekken["multimodal"] = {"image_patch_size": 16, "max_image_size": 1024}
    (tmp_path / "tekken.json").write_text(json.dumps(tekken))
    tokenizer = load_tokenizer(tmp_path)
    assert isinstance(tokenizer, NativeTokenizer)
    return tokenizer


PARTS: list[dict[str, Any]] = [
    {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/x"}},
    {"type": "image_url", "image_url": "file:///etc/passwd"},
    {"type": "image", "image": "AAAA"},
    {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
    {"type": "audio_url", "audio_url": "http://127.0.0.1:9/x"},
]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("role", ["user", "system", "assistant"])
def test_a_part_that_is_no_text_is_refused_before_it_is_opened(
    seeing: NativeTokenizer, monkeypatch: pytest.MonkeyPatch, part: dict[str, Any], role: str
) -> None:
    def opened(*args: Any, **kwargs: Any) -> Any:
        raise _OpenedError(args)

    monkeypatch.setattr(seeing._mistral, "encode_chat_completion", opened)  # which fetches and opens
    messages = [{"role": "user", "content": "x"}, {"role": role, "content": [{"type": "text", "text": "x"}, part]}]
    with pytest.raises(ChatTemplateError, match=f"message 2 has a part of the type '{part['type']}'"):
        seeing.encode_chat(messages)


def test_text_parts_are_mistral_commons(
    native: NativeTokenizer, tekken_reference: Callable[[list[Any], list[Any] | None], list[int]]
) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert native.encode_chat(messages) == tekken_reference(messages, None)


def test_ids_and_tokens(native: NativeTokenizer) -> None:
    assert (native.bos_id, native.eos_ids, native.vocab_size) == (1, {2}, 21_000)
    assert native.special_ids >= {1, 2, 3}
    assert (native.token_of(1), native.id_of("</s>"), native.id_of("no such token")) == ("<s>", 2, None)
    for token_id in (-1, 2**32):
        with pytest.raises(TokenizerError, match=f"no token has the id {token_id} "):
            native.decode([token_id])
    hello = native.encode("Hello")
    assert native.decode([native.vocab_size, *hello, 2**32 - 1]) == "Hello"  # rows that pad the model's vocabulary
    with pytest.raises(TokenizerError, match="UTF-8"):
        native.encode("\ud800")
    with pytest.raises(TokenizerError, match="the conversation cannot be encoded as UTF-8"):
        native.encode_chat([{"role": "user", "content": "\ud800"}])


@pytest.fixture(scope="module", params=["v1", "v2", "v3", "v7"])
def sentencepiece(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> NativeTokenizer:
    """A directory with nothing but a SentencePiece model, under its published name."""
    directory = tmp_path_factory.mktemp(request.param)
    (directory / SPM[request.param]).symlink_to(DATA / SPM[request.param])
    tokenizer = load_tokenizer(directory)
    assert isinstance(tokenizer, NativeTokenizer)
    return tokenizer


@pytest.mark.parametrize("text", [*TEXTS, " ", " one space ahead", "▁ and <0x41>"])
def test_sentencepieces_text_is_its_own_and_comes_back(sentencepiece: NativeTokenizer, text: str) -> None:
    reference = sentencepiece._inner
    ids = sentencepiece.encode(text)
    assert ids == reference.encode(text, bos=True, eos=False)
    assert sentencepiece.decode(ids) == reference.decode(ids)
    stream = sentencepiece.detokenizer()
    assert "".join(map(stream.add, ids)) + stream.finish() == reference.decode(ids)
    same, ends = sentencepiece.encode_with_ends(text)
    assert same == ids
    assert ends[-1] == len(text)
    assert ends == sorted(ends)


def test_sentencepieces_conversations_are_mistral_commons(sentencepiece: NativeTokenizer) -> None:
    request = ChatCompletionRequest(messages=CHAT)
    ids = sentencepiece.encode_chat(CHAT)
    assert ids == list(sentencepiece._mistral.encode_chat_completion(request).tokens)
    assert len(sentencepiece.vocabulary) == sentencepiece.vocab_size
    hello = sentencepiece.encode("Hello", add_special_tokens=False)
    after = sentencepiece.detokenizer(ids)
    assert "".join(map(after.add, hello)) + after.finish() == " Hello"  # as it goes on after the prompt


def test_several_sentencepiece_models_are_no_guess(tmp_path: Path) -> None:
    for name in ("tokenizer.model.v2", "tokenizer.model.v3"):
        (tmp_path / name).touch()
    with pytest.raises(TokenizerError, match=r"several tokenizers \(found tokenizer\.model\.v2, tokenizer\.model\.v3"):
        load_tokenizer(tmp_path)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "tekken.json").write_text("{}")
    with pytest.raises(TokenizerError, match=r"tekken\.json: config.default_vocab_size is not a number of tokens"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("key", ["default_vocab_size", "default_num_special_tokens"])
@pytest.mark.parametrize("size", [10**9, -1, "5"])
def test_absurd_numbers_of_tokens_are_refused(tmp_path: Path, key: str, size: object) -> None:
    config = {"default_vocab_size": 300, "default_num_special_tokens": 5, key: size}
    (tmp_path / "tekken.json").write_text(json.dumps({"config": config}))
    with pytest.raises(TokenizerError, match=rf"tekken\.json: config\.{key} is not a number of tokens"):
        load_tokenizer(tmp_path)


def test_what_mistral_common_cannot_read_is_named(tmp_path: Path) -> None:
    config = {"default_vocab_size": 300, "default_num_special_tokens": 5}
    (tmp_path / "tekken.json").write_text(json.dumps({"config": config}))
    with pytest.raises(TokenizerError, match=r"tekken\.json: mistral-common cannot read this tokenizer"):
        load_tokenizer(tmp_path)


def test_tokenizer_json_comes_first(tmp_path: Path) -> None:
    (tmp_path / "tekken.json").write_text("{}")
    (tmp_path / "tokenizer.json").symlink_to(STORIES / "tokenizer.json")
    assert not isinstance(load_tokenizer(tmp_path), NativeTokenizer)


def test_without_mistral_common_the_way_out_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_layout(oracle("mistral_headdim32"), tmp_path, "mistral")
    (path / "tekken.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "mistral_common.tokens.tokenizers.mistral", None)
    with pytest.raises(TokenizerError) as caught:
        core.load(path)
    assert 'pip install "corelm[mistral]"' in str(caught.value)
    assert "core.load(…, tokenizer=False) loads without one" in str(caught.value)


def test_a_native_checkpoint_generates_text(small_tekken: Path, tmp_path: Path) -> None:
    path = write_layout(oracle("mistral_headdim32"), tmp_path, "mistral")
    tekken = json.loads(small_tekken.read_text())
    tekken["config"]["default_vocab_size"], tekken["config"]["default_num_special_tokens"] = 356, 100
    (path / "tekken.json").write_text(json.dumps(tekken))
    lm = core.load(path)
    assert isinstance(lm.tokenizer, NativeTokenizer)
    ids = lm.tokenizer.encode("")
    result = lm.generate(ids, max_tokens=4)
    assert result.text == lm.tokenizer.decode(result.token_ids)
