"""Streamed text equals the full decode, comes as early as it is certain, and costs linear time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import TokenizerError
from core.text import Detokenizer, TextFiles, Tokenizer
from core.text.pieces import Kind, Pieces

from .conftest import Make
from .references import STORIES
from .vocabularies import config

EMOJI = "a😀b é 👨‍👩‍👧 東京"


def streamed(tokenizer: Tokenizer, ids: Sequence[int], prompt: Sequence[int] = ()) -> list[str]:
    stream = tokenizer.detokenizer(prompt)
    return [*map(stream.add, ids), stream.finish()]


def variant(**changes: Any) -> Tokenizer:
    """The small vocabulary with another decoder or another part."""
    state = json.loads((STORIES / "tokenizer.json").read_bytes())
    state.update(changes)
    return Tokenizer.from_files(TextFiles(json.dumps(state).encode(), tokenizer_config=config()))


REPLACE = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
STRIP_END = {"type": "Strip", "content": " ", "start": 0, "stop": 1}
STRIP_TWO = {"type": "Strip", "content": " ", "start": 2, "stop": 0}
DECODERS: dict[str, tuple[Any, Kind]] = {
    "none": (None, Kind.PIECES),
    "metaspace": (METASPACE, Kind.PIECES),
    "fallback": ({"type": "Sequence", "decoders": [REPLACE, {"type": "ByteFallback"}, {"type": "Fuse"}]}, Kind.PIECES),
    "strip_two": ({"type": "Sequence", "decoders": [REPLACE, {"type": "Fuse"}, STRIP_TWO]}, Kind.PIECES),
    "strip_end": ({"type": "Sequence", "decoders": [REPLACE, {"type": "Fuse"}, STRIP_END]}, Kind.WHOLE),
    "replace_after_fuse": ({"type": "Sequence", "decoders": [{"type": "Fuse"}, REPLACE]}, Kind.WHOLE),
    "wordpiece": ({"type": "WordPiece", "prefix": "##", "cleanup": True}, Kind.WHOLE),
    "bpe": ({"type": "BPEDecoder", "suffix": "</w>"}, Kind.WHOLE),
    "ctc": ({"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": True}, Kind.WHOLE),
}


# Strip at the end makes tokenizers itself panic on a lone space: its kind is tested, its text cannot be.
DECODABLE = [name for name in DECODERS if name != "strip_end"]


@pytest.fixture(scope="session", params=["stories", "v1-legacy", "v3-metaspace", "tekken", *DECODABLE])
def tokenizer(request: pytest.FixtureRequest, make: Make, stories: Tokenizer) -> Tokenizer:
    name = request.param
    if name == "stories":
        return stories
    return variant(decoder=DECODERS[name][0]) if name in DECODERS else make(name)


@cache
def id_lists(tokenizer: Tokenizer) -> st.SearchStrategy[list[int]]:
    """Random ids; bytes, spaces, specials and the pieces of an emoji come often."""
    bytes_ = [tokenizer.id_of(f"<0x{byte:02X}>") for byte in (0x20, 0x0A, 0x41, 0xC3, 0xA9, 0xF0, 0x9F, 0x98, 0x80)]
    often = [i for i in [*bytes_, tokenizer.id_of("▁"), tokenizer.id_of("a")] if i is not None]
    often += tokenizer.encode(EMOJI) + sorted(tokenizer.special_ids)[:4]
    return st.lists(st.sampled_from(often) | st.integers(0, tokenizer.vocab_size - 1), max_size=24)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_stream_equals_decode(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(id_lists(tokenizer))
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_stream_after_a_prompt_goes_on_where_it_ends(tokenizer: Tokenizer, data: st.DataObject) -> None:
    """What was certain of the prompt, and the stream, are the decode of both."""
    prompt, ids = data.draw(id_lists(tokenizer)), data.draw(id_lists(tokenizer))
    whole = tokenizer.decode(prompt + ids)
    text = "".join(streamed(tokenizer, ids, prompt))
    if tokenizer._pieces.kind is Kind.WHOLE:
        assert text == whole[len(tokenizer.decode(prompt)) :]
    else:
        certain = tokenizer.detokenizer()
        assert "".join(map(certain.add, prompt)) + text == whole


@pytest.mark.parametrize("name", DECODERS)
def test_kind_of_decoder(name: str) -> None:
    decoder, kind = DECODERS[name]
    assert variant(decoder=decoder)._pieces.kind is kind


def test_skipped_tokens_do_not_break_a_character(make: Make) -> None:
    tokenizer = make("v3-metaspace")
    first, *rest = tokenizer.encode("🗼", add_special_tokens=False)[1:]
    eos = tokenizer.id_of("</s>")
    assert eos is not None
    assert streamed(tokenizer, [first, eos, *rest]) == ["", "", "", "", "", "🗼"]


def test_no_replacement_character_before_the_character_is_complete(make: Make) -> None:
    for name in ("v1-legacy", "v3-metaspace", "tekken"):
        tokenizer = make(name)
        ids = tokenizer.encode(EMOJI * 3, add_special_tokens=False)
        stream = tokenizer.detokenizer()
        seen = ""
        for i in ids:
            seen += stream.add(i)
            assert "\ufffd" not in seen
            assert (EMOJI * 3).startswith(seen)
        assert seen + stream.finish() == EMOJI * 3


def test_text_comes_with_the_token_that_completes_it(make: Make) -> None:
    spm = make("v3-metaspace")
    ids = spm.encode("Hello world", add_special_tokens=False)
    assert [spm.token_of(i) for i in ids] == ["▁Hello", "▁world"]
    assert streamed(spm, ids) == ["Hello", " world", ""]
    tekken = make("tekken")
    first, *rest = tekken.encode("é😀", add_special_tokens=False)
    assert tekken.detokenizer().add(first) == "é"
    assert streamed(tekken, rest)[-2:] == ["😀", ""]


def test_unfinished_bytes_become_replacement_characters(make: Make) -> None:
    tokenizer = make("v3-metaspace")
    lead = tokenizer.id_of("<0xF0>")
    letter = tokenizer.id_of("a")
    assert lead is not None
    assert letter is not None
    assert streamed(tokenizer, [lead]) == ["", "\ufffd"]
    assert streamed(tokenizer, [lead, letter]) == ["", "\ufffda", ""]
    stream = tokenizer.detokenizer()
    stream.add(lead)
    assert stream.finish() == "\ufffd"
    assert stream.finish() == ""


def test_leading_space(make: Make) -> None:
    """Dropped at the start of a text, as the full decode does; kept where a prompt comes before."""
    tokenizer = make("v3-metaspace")
    world = tokenizer.id_of("▁world")
    assert world is not None
    assert streamed(tokenizer, [world]) == ["world", ""]
    assert streamed(tokenizer, [world], tokenizer.encode("Hello")) == [" world", ""]
    assert streamed(tokenizer, [world], [1]) == ["world", ""]  # a special token is no text
    space = tokenizer.id_of("▁")
    assert space is not None
    assert streamed(tokenizer, [space, world]) == ["", " world", ""]


def test_a_character_that_begins_in_the_prompt(make: Make) -> None:
    """Its bytes, one token each, may lie on both sides; it belongs to the text."""
    for name, forms in (("tekken", "ðŁĹ¼"), ("v3-metaspace", ["<0xF0>", "<0x9F>", "<0x97>", "<0xBC>"])):
        tokenizer = make(name)
        ids = [tokenizer.id_of(form) or 0 for form in forms]
        word = tokenizer.encode("word", add_special_tokens=False)
        for cut in range(4):
            assert "".join(streamed(tokenizer, ids[cut:], word + ids[:cut])) == "🗼"


def test_ids_without_token(make: Make) -> None:
    tokenizer = make("v3-metaspace")
    for bad in (-1, 2**40):
        with pytest.raises(TokenizerError, match=rf"no token has the id {bad} \(expected 0 to 32767\)"):
            tokenizer.detokenizer().add(bad)
        with pytest.raises(TokenizerError, match="no token has the id"):
            tokenizer.decode([1, bad])
        with pytest.raises(TokenizerError, match="no token has the id"):
            tokenizer.detokenizer([bad])
        with pytest.raises(TokenizerError, match="no token has the id"):
            tokenizer.token_of(bad)
    with pytest.raises(TokenizerError, match="no token has the id 32768 "):
        tokenizer.token_of(32768)


@pytest.mark.parametrize("name", ["v3-metaspace", "v1-legacy", "tekken"])
def test_ids_of_a_padded_vocabulary_are_no_text(make: Make, name: str) -> None:
    """A model with more rows than the tokenizer has tokens draws them; ``tokenizers`` decodes them to nothing."""
    tokenizer = make(name)
    ids = tokenizer.encode("Écris 🗼 now", add_special_tokens=False)
    padded = [i for token_id in ids for i in (tokenizer.vocab_size, token_id, 2**32 - 1)]
    assert tokenizer._backend.decode(padded, skip_special_tokens=False) == "Écris 🗼 now"
    assert tokenizer.decode(padded) == "Écris 🗼 now"
    assert "".join(streamed(tokenizer, padded)) == "Écris 🗼 now"
    assert tokenizer.decode([tokenizer.vocab_size]) == ""
    assert streamed(tokenizer, ids, [tokenizer.vocab_size]) == streamed(tokenizer, ids)


class CountingPieces(Pieces):
    """Counts the ids that are decoded."""

    work = 0

    def decode(self, ids: Sequence[int]) -> str:
        self.work += len(ids)
        return super().decode(ids)


@pytest.mark.parametrize("name", ["v1-legacy", "tekken"])
@pytest.mark.parametrize("text", ["word ", "😀", "\n", "<s>"])
def test_linear_work(make: Make, name: str, text: str) -> None:
    """Per id, a bounded number of ids are decoded, whatever the text: words, runs of bytes, specials."""
    tokenizer = make(name)
    ids = tokenizer.encode(text, add_special_tokens=False) * 1500
    pieces = CountingPieces(tokenizer._backend, tokenizer.special_ids)
    pieces.work = 0
    stream = Detokenizer(pieces)
    assert "".join([*map(stream.add, ids), stream.finish()]) == tokenizer.decode(ids)
    assert pieces.work <= 3 * len(ids)


def test_linear_work_of_bytes_that_never_complete(make: Make) -> None:
    tokenizer = make("v1-legacy")
    lead = tokenizer.id_of("<0xF0>")
    assert lead is not None
    pieces = CountingPieces(tokenizer._backend, tokenizer.special_ids)
    pieces.work = 0
    stream = Detokenizer(pieces)
    assert "".join([*map(stream.add, [lead] * 3000), stream.finish()]) == "\ufffd" * 3000
    assert pieces.work <= 3 * 3000
