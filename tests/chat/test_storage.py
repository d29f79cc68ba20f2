"""Files of conversations: what is read back, what is refused, and that nothing is ever half written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from core.chat import checked_messages, checked_tools, read_conversation, write_conversation
from core.errors import ConversationError

CALL = {"id": "abcdefgh1", "type": "function", "function": {"name": "f", "arguments": {"a": [1, None]}}}
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Écris 🗼\n"},
    {"role": "user", "content": [{"type": "text", "text": "x"}]},
    {"role": "assistant", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "abcdefgh1", "content": "1"},
    {"role": "assistant", "content": "cut", "interrupted": True},
]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_conversation(path, MESSAGES, tools=TOOLS, model="demo:mistral")
    stored = read_conversation(path)
    assert (stored.messages, stored.tools, stored.model) == (MESSAGES, TOOLS, "demo:mistral")
    write_conversation(path, MESSAGES[:2])
    assert read_conversation(path).messages == MESSAGES[:2]
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_a_list_of_messages_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(MESSAGES).encode())
    assert read_conversation(path).messages == MESSAGES
    path.write_text(json.dumps({"messages": MESSAGES}))  # as other programs have it
    assert read_conversation(path).messages == MESSAGES


NESTED = '[{"role": "user", "content": [{"type": "text", "text": %s%s}]}]'
TOOL = '{"messages": [], "tools": [{"type": "function", "function": {"name": "f", "parameters": %s%s}}]}'
BAD_FILES = {
    "": "is not valid JSON",
    "{": "is not valid JSON",
    "[" * 100_000: "is JSON that is nested too deeply",
    NESTED % (300 * "[", 300 * "]"): "message 1 of 1: is nested more than 100 deep",
    NESTED % (300 * '{"a":', "0" + 300 * "}"): "message 1 of 1: is nested more than 100 deep",
    TOOL % (300 * "[", 300 * "]"): "tool 1 of 1 is nested more than 100 deep",
    TOOL % (300 * '{"a":', "0" + 300 * "}"): "tool 1 of 1 is nested more than 100 deep",
    "3": "a conversation is a list of messages",
    '"user"': "a conversation is a list of messages",
    "{}": "holds no messages",
    '{"corelm_conversation": 2, "messages": []}': "of another version",
    '{"messages": [], "tools": {}}': "tools are a list",
    '{"messages": [], "tools": [{"name": "f"}]}': "tool 1 of 1 is not valid",
    '[{"role": "user", "content": "a"}, "b"]': "message 2 of 2: is not an object but str",
    '[{"content": "a"}]': "message 1 of 1: has no role",
    '[{"role": "user"}]': "has no content",
    '[{"role": "user", "content": 3}]': "neither text nor a list of objects, but int",
    '[{"role": "user", "content": "a", "tool_calls": []}]': "has tool calls, and the role 'user'",
    '[{"role": "assistant", "tool_calls": [{"name": "f"}]}]': "tool_calls is not a list of",
    '[{"role": "assistant", "tool_calls": [{"function": {"name":"f", "arguments":3}}]}]': "tool_calls is not a list of",
    '[{"role": "tool", "content": "a", "tool_call_id": 3}]': "tool_call_id is not text",
    '[{"role": "assistant", "content": "a", "interrupted": "yes"}]': "interrupted is neither true nor false",
    r'[{"role": "user", "content": "\ud83d"}]': "not valid Unicode",
}


@pytest.mark.parametrize("content", BAD_FILES, ids=range(len(BAD_FILES)))
def test_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(ConversationError) as info:
        read_conversation(path)
    assert BAD_FILES[content] in str(info.value)
    assert str(info.value).startswith(str(path))


def test_not_utf8_and_not_there(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b'[{"role": "user", "content": "\xe9"}]')
    for name, problem in (("latin", "is not valid JSON"), ("none", "cannot be read"), (".", "cannot be read")):
        with pytest.raises(ConversationError, match=problem):
            read_conversation(tmp_path / name)


def test_what_is_no_conversation_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights")
    with pytest.raises(ConversationError, match="exists, and is not a conversation"):
        write_conversation(path, MESSAGES)
    assert path.read_bytes() == b"weights"


def test_names_of_no_file(tmp_path: Path) -> None:
    """A NUL, a loop of links, a directory, a pipe that nobody writes to: one error each, and nothing waits."""
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    for name in ("a\0b", "loop"):
        with pytest.raises(ConversationError, match="cannot be read: "):
            read_conversation(tmp_path / name)
    for name, reason in {
        "a\0b": "cannot be written: embedded null",
        "loop": "cannot be|is there",
        ".": "exists",
        "pipe": "exists",
    }.items():
        with pytest.raises(ConversationError, match=reason):
            write_conversation(tmp_path / name, MESSAGES)


def test_a_file_without_an_end_is_read_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.chat.storage._LIMIT", 100)
    with pytest.raises(ConversationError, match=r"/dev/zero: is too large \(expected at most 100 bytes\)"):
        read_conversation("/dev/zero")
    whole = tmp_path / "whole.json"
    whole.write_text("[]".ljust(100))
    assert read_conversation(whole).messages == []


def test_what_refers_to_itself_is_nested_too_deeply() -> None:
    content: list[Any] = [{"type": "text"}]
    content[0]["text"] = content
    with pytest.raises(ConversationError, match="message 1 of 1: is nested more than 100 deep"):
        checked_messages([{"role": "user", "content": content}])


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_leaves_the_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    path = tmp_path / "a.json"
    write_conversation(path, MESSAGES[:2])

    def fail(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((os, "fsync", fail) if step == "fsync" else (Path, "replace", fail)))
    with pytest.raises(ConversationError, match="cannot be written: No space left on device"):
        write_conversation(path, MESSAGES)
    assert read_conversation(path).messages == MESSAGES[:2]
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "link.json").symlink_to(tmp_path / "a.json")
    write_conversation(tmp_path / "link.json", MESSAGES)
    assert (tmp_path / "link.json").is_symlink()
    assert read_conversation(tmp_path / "a.json").messages == MESSAGES


def test_checked_messages_are_copies() -> None:
    given = [{"role": "user", "content": "x"}]
    checked = checked_messages(given)
    assert checked == given
    assert checked[0] is not given[0]
    assert checked_tools(TOOLS) == TOOLS
