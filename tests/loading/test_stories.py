"""A real trained model says what its authors say it says."""

from __future__ import annotations

import mlx.core as mx

import core
from core.kernels.device import cpu_sources
from tests.fixtures import EXPECTED_STORY, STORIES, STORIES_SHARDED

TOKENS = 256
SAME_IN_BFLOAT16 = 180
"""Tokens before rounding leads the bfloat16 copy elsewhere: token 185 with its weights upcast to float32, and on a CPU
token 219 computed in bfloat16."""


def story(lm: core.LanguageModel) -> list[int]:
    assert lm.tokenizer is not None
    bos = lm.tokenizer.bos_id
    assert bos is not None
    return list(core.generate_tokens(lm.model, [bos], max_tokens=TOKENS))


def test_float32_reproduces_the_documented_text() -> None:
    lm = core.load(STORIES)
    assert lm.tokenizer is not None
    assert lm.tokenizer.decode(story(lm)) == EXPECTED_STORY.read_text().removesuffix("\n")


def test_bfloat16_shards_agree_until_rounding_parts_them() -> None:
    expected = story(core.load(STORIES))
    upcast = story(core.load(STORIES_SHARDED, dtype=mx.float32))
    assert upcast[:SAME_IN_BFLOAT16] == expected[:SAME_IN_BFLOAT16]
    lm = core.load(STORIES_SHARDED)
    assert lm.report.plan.compute_dtype == (mx.float32 if cpu_sources() else mx.bfloat16)
    assert len(lm.report.plan.entries) == len(core.plan(STORIES).entries) + 1  # its lm_head is not tied
    assert story(lm)[:SAME_IN_BFLOAT16] == expected[:SAME_IN_BFLOAT16]
