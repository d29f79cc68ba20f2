"""Hints can be followed: what they name exists, takes what they give it, and the commands in them run."""

from __future__ import annotations

import inspect
import io
import json
import re
import shlex
from pathlib import Path

import pytest

import core
from core.errors import ChatTemplateError, WeightsError
from core.text import Tokenizer
from tests.cli.conftest import Run
from tests.fixtures import STORIES
from tests.fixtures.variants import variant


def test_the_command_that_shows_all_tensors(corelm: Run, tmp_path: Path) -> None:
    directory = variant(
        STORIES, tmp_path / "it's a model", config={"tie_word_embeddings": True, "num_hidden_layers": 1}
    )
    with pytest.raises(WeightsError) as caught:
        core.load(directory)
    command = re.search(r"corelm (inspect .* --keys) shows all", caught.value.hint or "")
    assert command is not None
    outcome = corelm(*shlex.split(command[1]))
    assert outcome.code == 1
    assert outcome.out.startswith("TENSOR")


@pytest.mark.parametrize("templates", [{}, {"rag": "{{ messages }}", "tool_use": "{{ messages }}"}])
def test_what_takes_a_chat_template(templates: dict[str, str], tmp_path: Path) -> None:
    directory = variant(STORIES, tmp_path / "model")
    if templates:
        named = [{"name": name, "template": source} for name, source in templates.items()]
        file = directory / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": named}))
    lm = core.load(directory)
    messages = [{"role": "user", "content": "Hello"}]
    with pytest.raises(ChatTemplateError) as caught:
        lm.generate(messages)
    hint = caught.value.hint or ""
    takers = re.findall(r"([\w.]+)\([\w, ]*chat_template=…\)", hint)
    assert takers == ["core.Conversation", "lm.tokenizer.encode_chat"]
    assert "chat_template" in inspect.signature(core.Conversation).parameters
    assert isinstance(lm.tokenizer, Tokenizer)
    assert lm.tokenizer.encode_chat(messages, chat_template=next(iter(templates), "{{ messages }}"))
    assert ("corelm chat --chat-template FILE" in hint) is (not templates)


def test_the_command_that_takes_a_chat_template(corelm: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Hello\n")))
    (tmp_path / "template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    arguments = ("chat", "--model", STORIES, "--chat-template", tmp_path / "template.jinja", "--max-tokens", "1")
    assert corelm(*arguments).code == 0
