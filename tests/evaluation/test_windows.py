"""The windows over a text: what they read and score, for any length, context and stride."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import UsageError
from core.evaluation.settings import check_settings, complete_settings
from core.evaluation.windows import Window, batches, plan_windows

LENGTHS = st.integers(0, 400)
CONTEXTS = st.integers(2, 120)
settings = CONTEXTS.flatmap(lambda context: st.tuples(st.just(context), st.integers(1, context)))


def recipe(length: int, max_length: int, stride: int) -> list[tuple[int, int, list[int]]]:
    """What the recipe's own loop reads and keeps: begin, end, positions of the labels that are not -100."""
    found, prev_end = [], 0
    for begin in range(0, length, stride):
        end = min(begin + max_length, length)
        labels = list(range(begin, end))
        kept = labels[-(end - prev_end) :]
        kept = [position for position in kept if position != begin]  # the model drops the first label
        if kept:
            found.append((begin, end, kept))
        prev_end = end
        if end == length:
            break
    return found


@given(LENGTHS, settings)
def test_the_windows_are_those_of_the_recipe(length: int, setting: tuple[int, int]) -> None:
    windows = [(w.start, w.stop, list(range(w.first, w.stop))) for w in plan_windows(length, *setting)]
    assert windows == recipe(length, *setting)


@given(LENGTHS, settings)
def test_each_token_but_the_first_is_scored_once(length: int, setting: tuple[int, int]) -> None:
    context, stride = setting
    windows = list(plan_windows(length, context, stride))
    scored = [position for w in windows for position in range(w.first, w.stop)]
    expected = range(1, length)
    if stride == context:  # disjoint windows: nothing comes before the first token of each
        expected = [position for position in expected if position % context]
    assert scored == list(expected)
    assert all(w.start < w.first < w.stop <= w.start + context for w in windows)
    assert all(w.first - w.start >= context - stride for w in windows[1:])


@given(LENGTHS, settings, st.integers(1, 500))
def test_batches_keep_order_and_shape(length: int, setting: tuple[int, int], tokens: int) -> None:
    windows = list(plan_windows(length, *setting))
    found = list(batches(iter(windows), tokens))
    assert [window for batch in found for window in batch] == windows
    for batch in found:
        assert len({window.shape for window in batch}) == 1
        assert len(batch) == 1 or sum(window.shape[0] for window in batch) <= tokens


def test_a_small_example() -> None:
    assert list(plan_windows(10, 4, 2)) == [Window(0, 4, 1), Window(2, 6, 4), Window(4, 8, 6), Window(6, 10, 8)]
    assert list(plan_windows(9, 4, 4)) == [Window(0, 4, 1), Window(4, 8, 5)]


@pytest.mark.parametrize("values", [(1, None, None), (0, None, None), (None, 0, None), (8, 9, None), (None, None, 1)])
def test_settings_that_make_no_sense(values: tuple[int | None, int | None, int | None]) -> None:
    with pytest.raises(UsageError):
        check_settings(*values)


def test_defaults() -> None:
    assert complete_settings(512, None, None) == (512, 256)
    assert complete_settings(32768, None, None) == (2048, 1024)
    assert complete_settings(None, None, 7) == (2048, 7)
    assert complete_settings(512, 9, None) == (9, 4)
    with pytest.raises(UsageError, match="made for"):
        complete_settings(512, 513, None)
    with pytest.raises(UsageError, match="longer than the context"):
        complete_settings(512, None, 513)
