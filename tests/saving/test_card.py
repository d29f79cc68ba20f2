"""The model card of a written checkpoint: all of the source's, what was done to it, and what is not there any more."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

import core
from core.checkpoint.source import DEMOS
from core.errors import SaveError
from tests.fixtures import oracle

SOURCE = oracle("mistral_swa8")

THEIRS = """---
# the terms first
license: other
license_name: terms-of-use
language:
- en
- no  # Norwegian, and not the opposite of yes
base_model: org/parent
tags: [chat, 'a: b']
library_name: transformers
widget:
- text: |
    key: none of the card's

    # nor a comment
model-index:
- name: it
  results: []
pipeline_tag: text-generation
---

# It

A *model* | of someone.
"""


def convert(tmp_path: Path, card: str | bytes) -> str:
    source = tmp_path / "source"
    shutil.copytree(SOURCE, source, dirs_exist_ok=True)
    (source / "README.md").write_bytes(card if isinstance(card, bytes) else card.encode())
    core.convert(source, tmp_path / "out", force=True)
    return (tmp_path / "out" / "README.md").read_text()


def left_out(card: str) -> str:
    (row,) = [line for line in card.splitlines() if line.startswith("| left out |")]
    return row


def test_metadata_and_text_go_along_and_changes_are_told(tmp_path: Path) -> None:
    card = convert(tmp_path, THEIRS)
    changed = (
        THEIRS.partition("---\n\n")[0]
        .replace("'a: b']", "'a: b', mlx]")
        .replace("library_name: transformers", "library_name: mlx")
        .replace("model-index:\n- name: it\n  results: []\n", "")
    )
    assert card.startswith(f"{changed}---\n\n# Model card\n")
    assert card.endswith("\n# It\n\nA *model* | of someone.\n")
    assert "`library_name: transformers`" in left_out(card)
    assert "evaluation results (`model-index`)" in left_out(card)
    theirs, ours = ModelCard(THEIRS).data.to_dict(), ModelCard(card).data.to_dict()
    del theirs["model-index"]
    assert ours == theirs | {"library_name": "mlx", "tags": ["chat", "a: b", "mlx"]}
    lm = core.load(tmp_path / "source", tokenizer=False)
    core.save(lm, tmp_path / "saved")
    assert (tmp_path / "saved" / "README.md").read_text() == card


@pytest.mark.parametrize(
    ("tags", "written"),
    [
        ("", "tags:\n- mlx\n"),
        ("tags:\n", "tags:\n- mlx\n"),
        ("tags: chat\n", "tags:\n- chat\n- mlx\n"),
        ("tags: mlx\n", "tags: mlx\n"),
        ("tags: []\n", "tags: [mlx]\n"),
        ("tags: [a, b,]\n", "tags: [a, b, mlx]\n"),
        ("tags:\n  - a\n  - no\n\n", "tags:\n  - a\n  - no\n  - mlx\n"),
        ("tags:\n- mlx\n- a\n", "tags:\n- mlx\n- a\n"),
        ("'tags': [a]\n", "'tags': [a, mlx]\n"),
    ],
)
def test_a_tag_is_added_in_the_style_that_is_there(tags: str, written: str, tmp_path: Path) -> None:
    card = convert(tmp_path, f"---\nlicense: mit\n{tags}---\ntext\n")
    head = card.partition("\n---\n")[0]
    assert head.replace("library_name: mlx\n", "").replace("\nlibrary_name: mlx", "") == (
        f"---\nlicense: mit\n{written}".rstrip()
    )


@pytest.mark.parametrize(
    "lines",
    [
        "license: [mit\n",
        "- a\n- b\n",
        "{license: mit}\n",
        "license: mit\nlicense: apache-2.0\n",
        'text: "one\nlicense: two"\n',
        "model-index: &a 1\nlicense: *a\n",
        "license: " + "[" * 1000 + "\n",
        "license: !!python/object/apply:os.getcwd []\n",
        "ignore_metadata_errors: true\n",
    ],
)
def test_metadata_that_cannot_be_kept_is_quoted(lines: str, tmp_path: Path) -> None:
    card = convert(tmp_path, f"---\n{lines}---\ntext\n")
    assert ModelCard(card).data.to_dict() == {"library_name": "mlx", "tags": ["mlx"]}
    assert "the source's metadata as such" in left_out(card)
    assert f"~~~yaml\n{lines}~~~\n\ntext\n" in card


def test_cards_of_other_kinds(tmp_path: Path) -> None:
    assert convert(tmp_path, "Only text.\n").endswith("## Model card of the source\n\nOnly text.\n")
    assert left_out(convert(tmp_path, "Only text.\n")) == "| left out | 2 files of other kinds |"
    core.convert(DEMOS / "mistral", tmp_path / "demo")
    assert left_out((tmp_path / "demo" / "README.md").read_text()) == "| left out | nothing |"
    windows = convert(tmp_path, b"\xef\xbb\xbf---\r\nlicense: mit\r\n---\r\ntext\r\n")
    assert windows.startswith("---\nlicense: mit\nlibrary_name: mlx\n")
    assert "the source's model card, which is not UTF-8 text" in left_out(convert(tmp_path, b"\xff"))
    assert "Model card of the source" not in convert(tmp_path, "")


def test_a_card_that_is_a_link_elsewhere_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    shutil.copytree(SOURCE, tmp_path / "source")
    (tmp_path / "secret").write_text("key")
    (tmp_path / "source" / "README.md").symlink_to(tmp_path / "secret")
    with pytest.raises(SaveError, match="is a link out of the checkpoint"):
        core.convert(tmp_path / "source", tmp_path / "out", progress=lambda done, total: pytest.fail("it was read"))
