"""Stop strings end a text where a search of the whole text says, however it is cut; nothing is held for too long."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import UsageError
from core.text.stops import StopStrings

STOPS = st.lists(st.text("ab", min_size=1, max_size=5), max_size=4)
PIECES = st.lists(st.text("abc", max_size=6), max_size=12)


def search(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The text before the stop string that is complete first, and which it is; by trying every prefix."""
    for end in range(len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            longest = max(complete, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(STOPS, PIECES)
def test_the_text_is_the_one_before_the_first_complete_stop(stops: list[str], pieces: list[str]) -> None:
    watch = StopStrings(stops)
    emitted = "".join(watch.add(piece) for piece in pieces) + watch.finish()
    assert (emitted, watch.found) == search("".join(pieces), stops)
    assert watch.finish() == ""


@given(STOPS, PIECES)
def test_exactly_what_may_become_a_stop_is_held(stops: list[str], pieces: list[str]) -> None:
    watch, text, emitted = StopStrings(stops), "", ""
    for piece in pieces:
        text += piece
        emitted += watch.add(piece)
        if watch.found is not None:
            break
        starts = {stop[:n] for stop in stops for n in range(1, len(stop))}
        held = max((len(start) for start in starts if text.endswith(start)), default=0)
        assert emitted == text[: len(text) - held]


def test_nothing_comes_after_a_stop() -> None:
    watch = StopStrings(["END"])
    assert [watch.add(piece) for piece in ("oneE", "ND two", "three", "END")] == ["one", "", "", ""]
    assert (watch.finish(), watch.found) == ("", "END")


def test_a_lone_string_is_one_stop_and_not_its_characters() -> None:
    watch = StopStrings("ab")
    assert watch.add("a b ab") == "a b "


def test_a_long_stop_takes_linear_time() -> None:
    """Comparing every suffix with every prefix would take hours."""
    watch = StopStrings(["a" * 50_000 + "b", "a" * 49_999 + "c"])
    assert sum(len(watch.add("a" * 1000)) for _ in range(200)) == 150_000
    assert watch.add("b") == ""
    assert watch.found is not None
    assert watch.found.endswith("b")


@pytest.mark.parametrize("stops", ["", [""], ["a", ""], [1], [None], [b"a"], 5, 0, None])
def test_what_is_no_stop_string_is_refused(stops: Any) -> None:
    with pytest.raises(UsageError):
        StopStrings(stops)
