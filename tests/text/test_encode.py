"""Raw prompts: ids against sentencepiece and mistral-common, and what is put around them."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from core.errors import TokenizerError
from core.text import TextFiles, Tokenizer

from .conftest import Make, vocabulary
from .references import STORIES, STRINGS
from .vocabularies import config

TEXTS: list[str] = STRINGS["strings"]


SMALL = (STORIES / "tokenizer.json").read_bytes()


def made(**tokenizer_config: Any) -> Tokenizer:
    return Tokenizer.from_files(TextFiles(SMALL, tokenizer_config=config(**tokenizer_config)))


@pytest.mark.parametrize("version", ["v1", "v3"])
def test_legacy_form_is_sentencepiece_on_raw_text(make: Make, version: str) -> None:
    """All but one string: ``<unk>`` in a raw text is a control token here, and text to sentencepiece."""
    tokenizer = make(f"{version}-legacy")
    differing = [
        text
        for text, ids in zip(TEXTS, STRINGS["ids"][version], strict=True)
        if tokenizer.encode(text, add_special_tokens=False) != ids
    ]
    assert differing == ["<unk>x"]


@pytest.mark.parametrize("version", ["v1", "v3"])
def test_metaspace_form_differs_at_leading_spaces_only(make: Make, version: str) -> None:
    """Metaspace puts no space before a text that begins with one; sentencepiece always does. It cannot match there."""
    tokenizer = make(f"{version}-metaspace")
    for text, ids in zip(TEXTS, STRINGS["ids"][version], strict=True):
        same = tokenizer.encode(text, add_special_tokens=False) == ids
        assert same != (text.startswith((" ", "▁")) or text == "<unk>x"), text


def test_tekken_is_mistral_common_on_raw_text(make: Make, small_tekken: Path) -> None:
    """All but ``<unk>``, a control token in raw text here."""
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    reference = Tekkenizer.from_file(small_tekken)
    tokenizer = make("tekken")
    differing = [
        text
        for text in TEXTS
        if tokenizer.encode(text, add_special_tokens=False) != reference.encode(text, bos=False, eos=False)
    ]
    assert differing == ["<unk>x"]


@pytest.mark.parametrize("name", ["v1-legacy", "v3-metaspace", "tekken"])
def test_decode_gives_the_text_back(make: Make, name: str) -> None:
    """Where the form's rules allow: not the space that Metaspace takes for its own, nor ``▁`` itself, nor ``<unk>``."""
    tokenizer = make(name)
    for text in TEXTS:
        lossy = "▁" in text or text == "<unk>x" or (name == "v3-metaspace" and text.startswith(" "))
        if name == "tekken":
            lossy = text == "<unk>x"
        assert lossy or tokenizer.decode(tokenizer.encode(text)) == text


def test_bos_comes_once(make: Make, stories: Tokenizer) -> None:
    for tokenizer in (make("v1-legacy"), make("v3-metaspace"), make("tekken"), stories):
        assert tokenizer.encode("a")[0] == tokenizer.bos_id == 1
        assert tokenizer.encode("a").count(1) == 1
        assert tokenizer.encode("<s>a").count(1) == 1
        assert tokenizer.encode("") == [1]
        assert tokenizer.encode("<s>") == [1]
        assert tokenizer.encode("a", add_special_tokens=False) == tokenizer.encode("a")[1:]
        assert tokenizer.encode("a<s>").count(1) == 2  # not a beginning


def test_stated_rules_win_over_the_post_processor() -> None:
    assert made(add_bos_token=False).encode("a") == made().encode("a")[1:]
    assert made(add_bos_token=True).encode("a") == made().encode("a")
    assert made(add_eos_token=True).encode("a") == [*made().encode("a"), 2]
    assert made(add_eos_token=True).encode("a</s>").count(2) == 1
    assert made(add_eos_token=False).encode("a") == made().encode("a")


def test_stated_bos_where_there_is_no_post_processor() -> None:
    state = json.loads(SMALL)
    state["post_processor"] = None
    bare = TextFiles(json.dumps(state).encode(), tokenizer_config=config())
    assert 1 not in Tokenizer.from_files(bare).encode("a")
    stated = TextFiles(json.dumps(state).encode(), tokenizer_config=config(add_bos_token=True))
    assert Tokenizer.from_files(stated).encode("a")[0] == 1


def test_truncation_and_padding_left_by_training_are_off() -> None:
    state = json.loads(SMALL)
    state["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    padding = {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None}
    state["padding"] = {**padding, "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"}
    tokenizer = Tokenizer.from_files(TextFiles(json.dumps(state).encode(), tokenizer_config=config()))
    assert tokenizer.encode("one two three four five six") == made().encode("one two three four five six")


def test_invalid_text(make: Make) -> None:
    with pytest.raises(TokenizerError, match="surrogate"):
        make("v3-metaspace").encode("a\ud83d")
    with pytest.raises(TypeError, match="a prompt is a str, not bytes"):
        make("v3-metaspace").encode(b"a")  # type: ignore[arg-type]


def test_ids_and_tokens(make: Make) -> None:
    tokenizer = make("v3-metaspace")
    assert tokenizer.id_of("[INST]") == 3
    assert tokenizer.token_of(3) == "[INST]"
    assert tokenizer.id_of("no such token") is None
    assert tokenizer.vocab_size == 32768
    assert tokenizer.decode([1, 3, 4, 2]) == ""
    assert tokenizer.decode([1, 3, 4, 2], skip_special_tokens=False) == "<s>[INST][/INST]</s>"
    assert tokenizer.decode(iter(tokenizer.encode("Hello"))) == "Hello"


def test_threads(make: Make) -> None:
    """One tokenizer, eight threads, every kind of call; the fenced encoder is made while others use it."""
    tokenizer = Tokenizer.from_files(
        TextFiles(
            vocabulary("v3-metaspace"),
            tokenizer_config=config(),
            chat_templates={"default": "{{ bos_token }}[INST] {{ messages[0].content }}[/INST]"},
        )
    )

    def work(seed: int) -> list[object]:
        text = TEXTS[seed % len(TEXTS)]
        chat = tokenizer.encode_chat([{"role": "user", "content": f"</s>{text}" if seed % 2 else text}])
        ids = tokenizer.encode(text)
        stream = tokenizer.detokenizer()
        return [chat, ids, "".join([*map(stream.add, ids), stream.finish()]), tokenizer.encode("[INST]x")]

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(work, range(480)))
    assert results == [work(seed) for seed in range(480)]
