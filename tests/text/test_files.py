"""Which file says what, which file wins, and what is said of files that are absent or broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.errors import ChatTemplateError, ConfigError, CoreError, TokenizerError
from core.text import TemplateWarning, TextFiles, Tokenizer, load_tokenizer
from core.text.fence import Fence, Literals
from core.text.origin import GIVEN, Traced

from .conftest import vocabulary
from .references import STORIES
from .vocabularies import config

Write = Callable[..., Path]
USER = [{"role": "user", "content": "x"}]


def test_a_directory(stories: Tokenizer) -> None:
    assert stories.bos_id == 1
    assert stories.eos_ids == {2}
    assert stories.special_ids == {0, 1, 2}
    assert stories.vocab_size == 512
    assert stories.chat_template is None
    assert stories.special_tokens == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    assert stories.decode(stories.encode("Once upon a time")) == "Once upon a time"
    assert load_tokenizer(str(STORIES)).vocab_size == 512


def test_tokenizer_json_alone_is_enough(checkpoint: Write) -> None:
    tokenizer = load_tokenizer(checkpoint(tokenizer_config__json=None, generation_config__json=None))
    assert tokenizer.bos_id is None
    assert tokenizer.eos_ids == frozenset()
    assert tokenizer.encode("a")[0] == 1  # the post-processor's own


EOS: list[tuple[Any, Any, set[int]]] = [
    (2, None, {2}),
    ([7, 8], None, {2, 7, 8}),
    (None, 9, {2, 9}),
    ([7], [8, 9], {2, 7, 8, 9}),
    (131072, None, {2, 131072}),
    (None, None, {2}),
]


@pytest.mark.parametrize(("generation", "model", "expected"), EOS)
def test_eos_ids_are_the_union(checkpoint: Write, generation: Any, model: Any, expected: set[int]) -> None:
    """``generation_config.json``, ``config.json`` and the tokenizer's own (2)."""
    path = checkpoint(generation_config__json={"eos_token_id": generation}, config__json={"eos_token_id": model})
    assert load_tokenizer(path).eos_ids == expected


def test_eos_id_of_a_nested_text_config(checkpoint: Write) -> None:
    assert load_tokenizer(checkpoint(config__json={"text_config": {"eos_token_id": [5]}})).eos_ids == {2, 5}


def test_given_configs_are_used_and_the_files_left_alone(checkpoint: Write) -> None:
    path = checkpoint(config__json="broken", generation_config__json="broken")
    tokenizer = load_tokenizer(path, config={"eos_token_id": 5}, generation_config={"eos_token_id": [6]})
    assert tokenizer.eos_ids == {2, 5, 6}


@pytest.mark.parametrize("value", ["2", 2.0, True, -1, [2, "3"], {"id": 2}, [[2]]])
def test_eos_ids_of_wrong_type(checkpoint: Write, value: Any) -> None:
    for name in ("generation_config__json", "config__json"):
        with pytest.raises(
            ConfigError, match=r"eos_token_id is neither an id nor a list of ids \(expected int or list"
        ):
            load_tokenizer(checkpoint(**{name: {"eos_token_id": value}, "tokenizer_config__json": {}}))
        checkpoint(**{name: {}})


def test_tokens_as_objects_and_from_the_map(checkpoint: Write) -> None:
    """A token is a string or an object with ``content``; the map serves where ``tokenizer_config.json`` is silent."""
    path = checkpoint(
        tokenizer_config__json={"bos_token": {"content": "<s>", "lstrip": False}},
        special_tokens_map__json={"bos_token": "</s>", "eos_token": {"content": "</s>"}, "unk_token": "<unk>"},
        generation_config__json={},
    )
    tokenizer = load_tokenizer(path)
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (1, {2})
    assert tokenizer.special_tokens["unk_token"] == "<unk>"


def test_null_means_none(checkpoint: Write) -> None:
    """A BOS stated as null is none, also where the model's config has an id for it."""
    path = checkpoint(tokenizer_config__json={"bos_token": None}, config__json={"bos_token_id": 1})
    assert load_tokenizer(path).bos_id is None


def test_bos_id_of_the_config_where_no_tokenizer_file_speaks(checkpoint: Write) -> None:
    silent = {"tokenizer_config__json": {}, "generation_config__json": {}}
    tokenizer = load_tokenizer(checkpoint(**silent, config__json={"bos_token_id": 1}))
    assert (tokenizer.bos_id, tokenizer.special_tokens) == (1, {"bos_token": "<s>"})
    for bad in (300, 4000, "1", None):  # a word, no token, no id
        assert load_tokenizer(checkpoint(**silent, config__json={"bos_token_id": bad})).bos_id is None


def test_a_named_token_that_is_an_ordinary_word(checkpoint: Write) -> None:
    """It becomes one id wherever its literal stands, and is skipped in decoding."""
    tokenizer = load_tokenizer(checkpoint(tokenizer_config__json={"eos_token": "▁the"}))
    word = tokenizer.id_of("▁the")
    assert word in tokenizer.special_ids
    assert tokenizer.encode("x▁thex").count(word) == 1  # type: ignore[arg-type]


def test_added_tokens_decoder(checkpoint: Write) -> None:
    entries = {"512": {"content": "<a>", "special": True}, "513": {"content": "<b>"}, "0": {"content": "<unk>"}}
    tokenizer = load_tokenizer(checkpoint(tokenizer_config__json={"added_tokens_decoder": entries}))
    assert (tokenizer.id_of("<a>"), tokenizer.id_of("<b>"), tokenizer.vocab_size) == (512, 513, 514)
    assert 512 in tokenizer.special_ids
    assert 513 not in tokenizer.special_ids
    assert tokenizer.decode([512, 513]) == "<b>"


def test_added_tokens_decoder_that_contradicts(checkpoint: Write) -> None:
    path = checkpoint(tokenizer_config__json={"added_tokens_decoder": {"700": {"content": "<a>"}}})
    with pytest.raises(
        TokenizerError, match=r"gives '<a>' an id that tokenizer.json has no room for \(expected 512, found 700"
    ):
        load_tokenizer(path)


def test_a_token_that_is_not_in_the_vocabulary(checkpoint: Write) -> None:
    with pytest.raises(TokenizerError, match="eos_token '<eot>' is not in the vocabulary") as info:
        load_tokenizer(checkpoint(tokenizer_config__json={"eos_token": "<eot>"}))
    assert "take both from one revision" in str(info.value)


ABSENT = [
    ([], "no tokenizer.json", "Hugging Face"),
    (["tokenizer.model"], "found tokenizer.model", "tokenizer.model only"),
    (["vocab.json", "merges.txt"], "found vocab.json", "vocab.json only"),
]


@pytest.mark.parametrize(("names", "found", "hint"), ABSENT)
def test_no_tokenizer_json(tmp_path: Path, names: list[str], found: str, hint: str) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(TokenizerError) as info:
        load_tokenizer(tmp_path)
    assert str(info.value).startswith(f"{tmp_path}: no tokenizer.json")
    assert found in str(info.value)
    assert hint in str(info.value)


def test_no_directory(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", STORIES / "tokenizer.json"):
        with pytest.raises(TokenizerError, match="is not a directory"):
            load_tokenizer(path)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"
BROKEN: list[tuple[str, Any, type[CoreError], str]] = [
    ("tokenizer__json", "", TokenizerError, "tokenizer.json: is empty"),
    ("tokenizer__json", '{"version": "1.0"', TokenizerError, "tokenizer.json: is not valid JSON"),
    ("tokenizer__json", "[]", TokenizerError, "tokenizer.json: is not a JSON object"),
    ("tokenizer__json", b"\xff\xfe", TokenizerError, "tokenizer.json: is not UTF-8 text"),
    ("tokenizer__json", POINTER, TokenizerError, "tokenizer.json: is a git-LFS pointer"),
    ("tokenizer__json", {"version": "1.0", "model": {"type": "?"}}, TokenizerError, "json: is refused by tokenizers"),
    ("tokenizer_config__json", "{", TokenizerError, "tokenizer_config.json: is not valid JSON"),
    ("tokenizer_config__json", "3", TokenizerError, "tokenizer_config.json: is not a JSON object"),
    ("special_tokens_map__json", "{", TokenizerError, "special_tokens_map.json: is not valid JSON"),
    ("chat_template__json", "{", ChatTemplateError, "chat_template.json: is not valid JSON"),
    ("chat_template__json", {"chat_template": 3}, ChatTemplateError, "chat_template has an unknown form"),
    ("tokenizer_config__json", {"chat_template": ["x"]}, ChatTemplateError, "chat_template has an unknown form"),
    ("tokenizer_config__json", {"chat_template": [{"name": "a"}]}, ChatTemplateError, "has an unknown form"),
    ("chat_template__jinja", b"\xff", ChatTemplateError, "chat_template.jinja: is not UTF-8 text"),
    ("config__json", "{", ConfigError, "config.json: is not valid JSON"),
    ("config__json", "[" * 100_000, ConfigError, "config.json: is nested too deeply"),
    ("generation_config__json", "null", ConfigError, "generation_config.json: is not a JSON object"),
]


@pytest.mark.parametrize(("name", "content", "kind", "message"), BROKEN)
def test_broken_file(checkpoint: Write, name: str, content: Any, kind: type[CoreError], message: str) -> None:
    with pytest.raises(kind, match=message) as info:
        load_tokenizer(checkpoint(**{name: content}))
    assert len(str(info.value).splitlines()) <= 3


def test_a_directory_in_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(TokenizerError, match="is not a file"):
        load_tokenizer(tmp_path)


NAMES = [
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
]


@pytest.mark.parametrize("name", NAMES)
def test_only_regular_files_of_some_size_are_read(
    checkpoint: Write, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not an endless device, nor a pipe that nobody writes to, nor a file that fills the memory."""
    path = checkpoint() / name
    for make in (os.mkfifo, lambda place: place.symlink_to("/dev/zero")):
        path.unlink(missing_ok=True)
        make(path)
        with pytest.raises(CoreError, match=f"{name}: is not a file .*found a device, pipe or socket"):
            load_tokenizer(path.parent)
    path.unlink()
    path.symlink_to(path.parent / "nowhere")
    with pytest.raises(CoreError, match=f"{name}: is a link to a file that does not exist"):
        load_tokenizer(path.parent)
    path.unlink()
    with path.open("wb") as file:
        file.truncate(256_000_001)  # a hole: it takes no room on the disk
    with pytest.raises(CoreError, match=f"{name}: is too large .expected at most 256,000,000 bytes"):
        load_tokenizer(path.parent)


def test_a_named_pipe_among_the_additional_templates(checkpoint: Write) -> None:
    path = checkpoint(chat_template__jinja="x")
    (path / "additional_chat_templates").mkdir()
    os.mkfifo(path / "additional_chat_templates" / "rag.jinja")
    with pytest.raises(ChatTemplateError, match=r"rag\.jinja: is not a file"):
        load_tokenizer(path)


HALF = {"512": {"content": "\ud800"}}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"added_tokens_decoder": HALF}, r"tokenizer_config\.json: added_tokens_decoder\['512'\] is not valid Unicode"),
        ({"bos_token": "\ud800"}, "bos_token is not valid Unicode"),
        ({"eos_token": {"content": "\ud800"}}, "eos_token is not valid Unicode"),
        ('{"model_max_length": ' + "9" * 5000 + "}", r"tokenizer_config\.json: has a number that no reader accepts"),
    ],
)
def test_hostile_values(checkpoint: Write, content: Any, said: str) -> None:
    with pytest.raises(TokenizerError, match=said):
        load_tokenizer(checkpoint(tokenizer_config__json=content))


def test_a_panic_of_the_tokenizer_is_an_error(checkpoint: Write) -> None:
    """A pattern that backtracks until its engine gives up, which ``tokenizers`` answers with a panic."""
    state = json.loads((STORIES / "tokenizer.json").read_bytes())
    split = {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated", "invert": False}
    tokenizer = load_tokenizer(
        checkpoint(tokenizer__json={**state, "pre_tokenizer": split}, chat_template__jinja="{{ messages[0].content }}")
    )
    text = "x" * 40 + "z"
    with pytest.raises(TokenizerError, match="tokenizers fails on a text of 41 characters"):
        tokenizer.encode(text)
    with pytest.raises(TokenizerError, match="tokenizers fails on a text of"):
        tokenizer.encode_chat([{"role": "user", "content": text}])


def test_a_control_token_of_absurd_length(checkpoint: Write) -> None:
    """It costs what its characters cost, not their square."""
    literal = "<" + "x" * 60_000 + ">"
    path = checkpoint(
        tokenizer_config__json={"added_tokens_decoder": {"512": {"content": literal, "special": True}}},
        chat_template__jinja="{{ messages[0].content }}",
    )
    tokenizer = load_tokenizer(path)
    assert 512 not in tokenizer.encode_chat([{"role": "user", "content": f"<x {literal}"}])
    assert tokenizer.render_chat([{"role": "user", "content": literal}]) == literal
    fence = Fence(Literals(frozenset({literal})), Traced(literal, GIVEN * len(literal)))
    assert len(fence.text) < 100  # one sentinel, not one for each character


def test_odd_values_from_python(checkpoint: Write) -> None:
    """By a template and by the instruction format alike."""
    deep: Any = "x"
    for _ in range(5000):
        deep = {"x": deep}
    tokenizer = load_tokenizer(checkpoint(chat_template__jinja="{{ messages[0].content }}{{ tools }}"))
    for tool, said in (
        (deep, "nested too deeply"),
        ({"f": object()}, "which is not plain data"),
        ({"f": b"x"}, "bytes"),
    ):
        with pytest.raises(ChatTemplateError, match=said):
            tokenizer.encode_chat(USER, tools=[tool])
    for messages in ("text", [], ["x"], [{"role": 1}], {"role": "user"}, None):
        with pytest.raises(
            ChatTemplateError, match=r"a conversation is a list|conversation is empty|a message is a mapping"
        ):
            tokenizer.encode_chat(messages)  # type: ignore[arg-type]
    with pytest.raises(TokenizerError, match="half of a surrogate pair"):
        tokenizer.encode_chat([{"role": "user", "content": "\ud800"}])


def shown(path: Path, **options: Any) -> str:
    return load_tokenizer(path).render_chat(USER, **options)


def test_where_the_template_comes_from(checkpoint: Write) -> None:
    """``chat_template.jinja``, then ``chat_template.json``, then ``tokenizer_config.json``."""
    path = checkpoint(tokenizer_config__json={"chat_template": "config"})
    assert shown(path) == "config"
    checkpoint(tokenizer_config__json={"chat_template": "config"}, chat_template__json={"chat_template": "json"})
    assert shown(path) == "json"
    (path / "chat_template.jinja").write_text("\ufeffjinja")
    assert shown(path) == "jinja"
    assert load_tokenizer(path).chat_template == "jinja"
    (path / "additional_chat_templates").mkdir()
    (path / "additional_chat_templates" / "rag.jinja").write_text("rag")
    assert shown(path, chat_template="rag") == "rag"


def test_templates_by_name(checkpoint: Write) -> None:
    """A list of templates: "tool_use" serves when there are tools, any by its name."""
    names = ("default", "tool_use", "rag")
    path = checkpoint(tokenizer_config__json={"chat_template": [{"name": name, "template": name} for name in names]})
    assert shown(path) == "default"
    with pytest.warns(TemplateWarning, match="does not use tools"):
        assert shown(path, tools=[{}]) == "tool_use"
    assert shown(path, tools=[]) == "default"
    with pytest.warns(TemplateWarning, match="does not use tools"):
        assert shown(path, tools=[{}], chat_template="rag") == "rag"
    assert shown(path, chat_template="{{ 1 + 1 }}") == "2"
    assert load_tokenizer(path).chat_template == "default"
    assert load_tokenizer(path).chat_format == "template"
    with pytest.raises(ChatTemplateError, match=r"no chat template is named 'other' \(found default, rag, tool_use\)"):
        shown(path, chat_template="other")


def test_no_default_among_the_names(checkpoint: Write) -> None:
    path = checkpoint(tokenizer_config__json={"chat_template": [{"name": "rag", "template": "rag"}]})
    with pytest.raises(ChatTemplateError, match=r"no chat template is named 'default' \(found rag\)"):
        shown(path)


def test_variables_reach_the_template(checkpoint: Write) -> None:
    path = checkpoint(tokenizer_config__json={"chat_template": "{{ a }}{{ add_generation_prompt }}{{ documents }}"})
    assert shown(path) == "TrueNone"
    assert shown(path, a="b", add_generation_prompt=False, documents=[1]) == "bFalse[1]"


def test_a_vocabulary_of_megabytes_from_memory() -> None:
    files = TextFiles(vocabulary("v3-metaspace"), tokenizer_config=config())
    assert Tokenizer.from_files(files).encode("Hello") == [1, 23325]


def test_import_is_cheap() -> None:
    """Neither the parsers nor anything with arrays is imported with the package; of core it knows one other room."""
    code = """
import sys, types
core = types.ModuleType("core"); core.__path__ = [sys.argv[1]]; sys.modules["core"] = core
import core.text
print(*sorted(name for name in sys.modules if name.split(".")[0] in
      {"jinja2", "tokenizers", "mlx", "numpy", "pydantic", "huggingface_hub"} or name.startswith("core.")))
"""
    root = Path(sys.modules["core.text"].__file__ or "").parent.parent
    output = subprocess.run([sys.executable, "-c", code, str(root)], capture_output=True, text=True, check=True).stdout
    names = output.split()
    assert "core.text.tokenizer" in names
    assert all(name == "core.errors" or name.startswith(("core.text", "core.checkpoint")) for name in names)


def test_readable_references() -> None:
    """The data that these tests stand on stays small."""
    folder = STORIES.parent
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 500_000
    assert json.loads((folder / "chat.json").read_text())
