"""The reference data: conversations, strings and templates, and the conversations that templates are compared on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent.parent / "data" / "text"
STORIES = DATA / "stories"
TEMPLATES = sorted((DATA / "chat_templates").glob("*.jinja"))
CHATS: list[dict[str, Any]] = json.loads((DATA / "chat.json").read_text())
STRINGS: dict[str, Any] = json.loads((DATA / "strings.json").read_text())


def template(name: str) -> str:
    return (DATA / "chat_templates" / f"{name}.jinja").read_text()


def chats(version: str) -> list[Any]:
    """Conversations that mistral-common encodes in a version, as pytest parameters' values: name and case."""
    return [case for case in CHATS if case["ids"][version] is not None]


def names(cases: list[Any]) -> list[str]:
    return [case["name"] for case in cases]
