"""Models for conversations, loaded once: one with a sliding window, one that keeps everything."""

from __future__ import annotations

import mlx.core as mx
import pytest

import core
from core.language_model import LanguageModel
from tests.fixtures import STORIES

# Messages one after another, with a control token between: what was said stays what it was.
APPENDING = (
    "{{ bos_token }}{% for m in messages %}{{ m.role if m.role == 'system' else '' }}{{ m.content }}{{ eos_token }}"
    "{% endfor %}"
)
# The system prompt in the last message, as Mistral's v3 has it: the last question changes when the next one comes.
REWRITING = (
    "{{ bos_token }}{% for m in messages %}{% if m.role != 'system' %}"
    "{% if loop.last and messages[0].role == 'system' %}({{ messages[0].content }}) {% endif %}"
    "{{ m.content | trim }}{{ eos_token }}{% endif %}{% endfor %}"
)


@pytest.fixture(scope="session")
def sliding() -> LanguageModel:
    """A window of 64 tokens, of a context of 2,048."""
    return core.load("demo:mistral", dtype=mx.float32)


@pytest.fixture(scope="session")
def full() -> LanguageModel:
    """Keeps all keys and values."""
    return core.load(STORIES, dtype=mx.float32)
